"""The captured graph, and the plan of which of its tensors are quantized."""

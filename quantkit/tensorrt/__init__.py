"""TensorRT's own calibrator: its cache, what feeds it, and which version has it."""

"""Quantization-aware training: switches for a loop of your own, and a loop for who has none."""

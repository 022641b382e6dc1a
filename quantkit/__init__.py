"""Quantize trained PyTorch models and prove the result up to the INT8 TensorRT engine."""

__version__ = "0.1.0"

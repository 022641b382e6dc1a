"""ONNX files with Q/DQ: writing them, and checking them before an engine is built."""

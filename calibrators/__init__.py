"""Calibrators: each file is one, and its name is the calibrator's name."""

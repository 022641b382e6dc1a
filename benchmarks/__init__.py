"""Benchmarks of quantkit on real, trained models."""

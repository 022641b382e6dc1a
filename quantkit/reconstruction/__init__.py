"""Roundings that learn: a model run piece by piece over kept samples, and what they are told."""

"""Passes from float graph to float graph: each file is one, and its name is the pass's name."""

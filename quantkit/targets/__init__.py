"""Places to run: each file is one, and its name is the target's name."""

"""Ways to put weights on their grid: each file is one, and its name is the way's name."""

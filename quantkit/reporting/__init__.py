"""One page that tells what was done to a model, what came of it, and what to change."""

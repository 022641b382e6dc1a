"""Back to the accuracy that is wanted, by a ladder of remedies in the order of what they cost."""

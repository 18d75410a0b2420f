"""Per-head weights, found and verified in a forward, and both ends of the vocabulary."""

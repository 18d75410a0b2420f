"""Load a subject, see its towers, layers and heads, and stand at every attention call."""

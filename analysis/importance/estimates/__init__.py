"""Importance estimated from gradients, attention maps and direct paths."""

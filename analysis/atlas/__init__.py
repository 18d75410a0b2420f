"""The pattern atlas: what kinds of attention the heads of a model make."""

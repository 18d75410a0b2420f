"""Heads on a behaviour against a control: how far apart, how surely, and at what loss."""

"""Outputs of heads exchanged between two inputs: activation and path patching."""

"""Parity with the models' own eager attention: one row per family, built from a small config."""

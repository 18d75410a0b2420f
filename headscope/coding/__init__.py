"""Coders of head outputs from a model and data: train, judge, read, write. No mathematics here."""

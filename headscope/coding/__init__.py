"""Coders of head outputs from a model and data: train, judge, read, write. No mathematics here."""

from headscope.coding.evidence import box_evidence, copy_evidence

__all__ = ["box_evidence", "copy_evidence"]

"""Attention sinks and what makes them: massive activations, their dimensions, artefact patches.

A room of its own, not a part of `analysis.vision`: models that see nothing have sinks too.
"""

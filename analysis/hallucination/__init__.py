"""Hallucinated objects in what a model says: mentions, CHAIR, POPE, repetition, comparison."""

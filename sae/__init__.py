"""Sparse autoencoders on what attention heads give out: to come.

Here will live recording activations from a subject, training coders, judging them, splicing them
into the model, and attributing their latents to heads and source positions. Nothing does yet.
"""

"""The fast training path of coders that keep k latents per row.

The matrix of all strengths, ``[batch latent]``, is never kept: rows are encoded in blocks that stay
in the processor's cache, and gradients touch the chosen latents only. The plain form of the same
loss is the coder's own (`sae.coders.topk`); tests hold the two together, all gradients included.
"""

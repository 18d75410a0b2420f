"""Sparse autoencoders on the outputs of attention heads. Nothing lives here yet.

Planned rooms: activations (a stream of head outputs from a subject), coders (ReLU, gated, TopK,
BatchTopK, Matryoshka, JumpReLU; a file each), training, evaluation, attribution of features to
heads and source tokens, and exchange with SAELens, sparsify and dictionary_learning files.
"""

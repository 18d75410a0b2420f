"""Causal importance: what a model loses without a head, exactly and by estimates.

One file per study. A study runs the model on a batch as often as it needs and hands back
per-example sums, so intervals, split halves, shards and resuming are those of the streaming
measures.
"""

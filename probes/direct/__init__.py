"""The residual stream alone: what reaches the output without passing another layer."""

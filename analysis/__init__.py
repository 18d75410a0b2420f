"""Streaming measures of attention heads, their uncertainty and nulls, and the table they fill."""

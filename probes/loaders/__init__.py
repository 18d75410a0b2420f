"""One file per place that a subject comes from; each has `matches` and `load`."""

"""Which heads do what another head does."""

"""Pictures of results: pure functions from a result to a figure, and the pages that show them."""

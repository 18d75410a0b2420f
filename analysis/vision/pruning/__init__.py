"""Which image tokens published methods would keep: scores of visual tokens, one file each."""

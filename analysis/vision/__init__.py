"""What only models that see have: heads that use the image, and edits that make them use it."""

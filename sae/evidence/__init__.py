"""Evidence for what one feature does: chosen on some examples, measured on others."""

"""How good a coder is: what it keeps of head outputs and of the model's work, and its latents."""

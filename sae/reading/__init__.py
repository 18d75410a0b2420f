"""Reading coders: what makes a feature fire, what it says, and what happens without it."""

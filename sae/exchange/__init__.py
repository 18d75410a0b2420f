"""Files of coders: our own folder, and those of other tools."""

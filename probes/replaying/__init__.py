"""How a recorded forward is run again from the middle; `probes.replay` is the front door."""

"""Published interventions on heads, one small file each; `probes.edits.apply` knows their names."""

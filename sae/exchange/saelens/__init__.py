"""Folders of SAELens: `cfg.json`, `sae_weights.safetensors` and `sparsity.safetensors`."""

from sae.exchange.saelens.density import read_density
from sae.exchange.saelens.reading import read_saelens
from sae.exchange.saelens.writing import write_saelens

__all__ = ["read_density", "read_saelens", "write_saelens"]

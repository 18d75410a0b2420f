"""Rows of head outputs: from a model, a store or tensors, and as shuffled batches."""

from sae.activations.as_activations import as_activations
from sae.activations.places import PlacedActivations, PlacedChunk, Places
from sae.activations.rank_share import RankShare
from sae.activations.shuffled_blocks import BlockState, ShuffledBlocks
from sae.activations.source import Activations, Chunk
from sae.activations.store import store_activations
from sae.activations.store_files import StoreError
from sae.activations.stored_rows import StoredActivations
from sae.activations.subject_rows import SubjectActivations
from sae.activations.tensor_rows import TensorActivations

__all__ = [
    "Activations",
    "BlockState",
    "Chunk",
    "PlacedActivations",
    "PlacedChunk",
    "Places",
    "RankShare",
    "ShuffledBlocks",
    "StoreError",
    "StoredActivations",
    "SubjectActivations",
    "TensorActivations",
    "as_activations",
    "store_activations",
]

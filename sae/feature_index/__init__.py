"""All features of a coder saved beside it, so that they can be looked at without the model."""

from sae.feature_index.reading import FeatureIndex
from sae.feature_index.writing import write_feature_index

__all__ = ["FeatureIndex", "write_feature_index"]

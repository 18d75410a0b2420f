"""Sparse autoencoders on the outputs of attention heads: train, judge, read, splice, exchange.

>>> import sae
>>> sae.TrainConfig(coder="topk", latents="8x", k=16).latents_of(128)
1024
"""

from sae.activations import (
    StoredActivations,
    SubjectActivations,
    TensorActivations,
    store_activations,
)
from sae.coders.coder import Coder, Codes
from sae.evidence.box_evidence import box_evidence
from sae.evidence.copy_evidence import copy_evidence
from sae.exchange.formats import export, load_coder
from sae.exchange.headscope_folder import save_coder
from sae.feature_index import FeatureIndex, write_feature_index
from sae.judging.fidelity import judge, judge_sites
from sae.judging.judgement import judgements
from sae.judging.latent_statistics import latent_statistics
from sae.judging.loss_recovered import loss_recovered
from sae.judging.sweep import beside_baselines, sweep
from sae.reading.direct_attribution import direct_attribution
from sae.reading.feature_examples import feature_examples
from sae.reading.head_shares import decoder_shares, firing_shares, top_features
from sae.reading.interventions import ablate_feature, scale_feature, set_feature, steer_feature
from sae.reading.logit_effects import logit_effects
from sae.reading.polysemanticity import polysemanticity
from sae.reading.prefix_matching import prefix_curves
from sae.reading.recursive_attribution import recursive_attribution
from sae.reading.steering import difference_of_means, steer
from sae.reading.windows import firing_views
from sae.splice import splice
from sae.training import TrainConfig, read_metrics, train, train_settings, train_sites

__all__ = [
    "Coder",
    "Codes",
    "FeatureIndex",
    "StoredActivations",
    "SubjectActivations",
    "TensorActivations",
    "TrainConfig",
    "ablate_feature",
    "beside_baselines",
    "box_evidence",
    "copy_evidence",
    "decoder_shares",
    "difference_of_means",
    "direct_attribution",
    "export",
    "feature_examples",
    "firing_shares",
    "firing_views",
    "judge",
    "judge_sites",
    "judgements",
    "latent_statistics",
    "load_coder",
    "logit_effects",
    "loss_recovered",
    "polysemanticity",
    "prefix_curves",
    "read_metrics",
    "recursive_attribution",
    "save_coder",
    "scale_feature",
    "set_feature",
    "splice",
    "steer",
    "steer_feature",
    "store_activations",
    "sweep",
    "top_features",
    "train",
    "train_settings",
    "train_sites",
    "write_feature_index",
]

"""Train coders: settings, one site's steps, checkpoints, several processes."""

from sae.training.config import TrainConfig
from sae.training.metrics import Listener, Notice, Record, read_metrics
from sae.training.train import train, train_settings, train_sites

__all__ = [
    "Listener",
    "Notice",
    "Record",
    "TrainConfig",
    "read_metrics",
    "train",
    "train_settings",
    "train_sites",
]

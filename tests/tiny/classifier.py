"""A classifier that has learnt nothing, small enough to run in every test."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsd_jax.classifier.model import Classifier, save_classifier
from medsd_jax.vision.densenet import DenseNetConfig, random_params

LABELS = ("pleural_effusion", "cardiomegaly")


def tiny_network(num_classes: int = 2) -> DenseNetConfig:
    """One grey channel, two blocks of one layer."""
    return DenseNetConfig(
        growth_rate=8, block_config=(1, 1), num_init_features=8, num_classes=num_classes,
        in_channels=1,
    )  # fmt: skip


def write_classifier(folder: Path, size: int, labels: Sequence[str] = LABELS) -> None:
    """Images of size x size."""
    network, count = tiny_network(len(labels)), len(labels)
    params, one = random_params(network, np.random.default_rng(0)), np.ones(count, np.float32)
    save_classifier(Classifier(network, tuple(labels), size, "pad", params, one, 0 * one), folder)

"""A judge that has learnt nothing, small enough to run in every test."""

from pathlib import Path

import numpy as np

from medsd_jax.classifier.model import Classifier, save_classifier
from medsd_jax.vision.densenet import DenseNetConfig, random_params

LABELS = ("pleural_effusion", "cardiomegaly")


def write_judge(folder: Path, side: int) -> None:
    """Two findings, pictures of side x side."""
    network = DenseNetConfig(
        growth_rate=8, block_config=(1, 1), num_init_features=8, num_classes=2, in_channels=1
    )
    params, one = random_params(network, np.random.default_rng(0)), np.ones(2, np.float32)
    save_classifier(Classifier(network, LABELS, side, "pad", params, one, 0 * one), folder)

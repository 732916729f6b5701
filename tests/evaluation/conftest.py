"""What the tests of this folder share: sets of features, and a judge that has learnt nothing."""

import numpy as np
import pytest

from medsd_jax.classifier.model import Classifier
from medsd_jax.vision.densenet import random_params
from tests.tiny.classifier import tiny_network


@pytest.fixture(scope="session")
def classifier():
    """Two findings, pictures of 24 x 24."""
    network = tiny_network()
    params = random_params(network, np.random.default_rng(0))
    slope, intercept = np.float32([2.0, 1.0]), np.float32([-0.5, 0.0])
    return Classifier(network, ("effusion", "nodule"), 24, "pad", params, slope, intercept)


@pytest.fixture
def feature_sets():
    """Real [70, 12] and synthetic [90, 12] float32: correlated, positive, skewed, as after ReLU."""

    def make(real=70, synthetic=90, width=12, shift=0.2, seed=0):
        rng = np.random.default_rng(seed)
        mixing = rng.normal(size=(width, width))
        first = np.maximum(rng.normal(size=(real, width)) @ mixing + 1.0, 0.0)
        second = np.maximum(1.1 * rng.normal(size=(synthetic, width)) @ mixing + 1.0 + shift, 0.0)
        return first.astype(np.float32), second.astype(np.float32)

    return make

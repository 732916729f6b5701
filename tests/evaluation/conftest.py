"""What the tests of this folder share: sets of features."""

import numpy as np
import pytest


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

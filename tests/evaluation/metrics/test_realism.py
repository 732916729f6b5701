"""Which image is among the real ones and which is far from them."""

import numpy as np
from scipy.spatial.distance import cdist

from medsd_jax.evaluation.metrics.realism import realism


def test_distances_and_neighbours_are_those_of_scipy(feature_sets):
    real, synthetic = feature_sets()
    result = realism(real, synthetic, k=5)
    apart = cdist(synthetic, real)
    radii = np.sort(cdist(real, real), axis=1)[:, 5]  # column 0 is the vector itself
    np.testing.assert_array_equal(result.neighbour, apart.argmin(axis=1))
    expected = apart.min(axis=1) / radii[apart.argmin(axis=1)]
    np.testing.assert_allclose(result.distance, expected, rtol=1e-5)  # float32 distances


def test_a_other_patient_is_far_and_a_copy_is_at_zero(feature_sets):
    real, synthetic = feature_sets()
    planted = np.concatenate([synthetic, real[3:4], real[:1] + 100.0])
    distance = realism(real, planted).distance
    assert distance[-2] == 0 and distance.argmax() == len(planted) - 1
    assert distance[-1] > 10 * np.median(distance)

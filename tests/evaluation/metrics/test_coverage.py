"""Do 95 % intervals of FID and KID hold the truth in 95 %, with several images per patient?"""

import numpy as np
import pytest

from medsd_jax.evaluation.metrics.frechet import frechet_distance, moments_of
from medsd_jax.evaluation.metrics.frechet_error import frechet_interval, frechet_standard_error
from medsd_jax.evaluation.metrics.kid import kid

PATIENTS, IMAGES = 60, 3
NAMES = np.repeat(np.arange(PATIENTS), IMAGES).astype(str).tolist()


def draw(rng, width, likeness, shift):
    """Real vectors of patients, 180 generated ones; rectified, as after ReLU."""
    own = np.repeat(rng.normal(size=(PATIENTS, width)), IMAGES, axis=0)
    real = np.sqrt(likeness) * own + np.sqrt(1 - likeness) * rng.normal(size=own.shape)
    synthetic = 1.1 * rng.normal(size=(PATIENTS * IMAGES, width)) + shift
    return np.maximum(real, 0.0), np.maximum(synthetic, 0.0)


def by_fid(real, synthetic):
    moments = moments_of(real), moments_of(synthetic)
    value = frechet_distance(*moments)
    error = frechet_standard_error(real, synthetic, moments, NAMES)
    return value, *frechet_interval(value, error, PATIENTS)


def by_kid(real, synthetic):
    result = kid(real, synthetic, real_groups=NAMES)
    return result.value, *result.interval()


def share_held(measure, simulations, width, likeness=0.8, shift=0.3):
    """How often the interval holds the mean of all draws: FID is biased, KID is not."""
    result = [
        measure(*draw(np.random.default_rng([width, s]), width, likeness, shift))
        for s in range(simulations)
    ]
    value, low, high = np.array(result).T
    return float(np.mean((low <= value.mean()) & (value.mean() <= high)))


@pytest.mark.parametrize("measure", [by_fid, by_kid])
@pytest.mark.parametrize("width", [8, 16])
def test_intervals_hold_the_truth(measure, width):
    # 200 draws know a share of 0.95 to 0.0154; 2.6 of these on either side.
    assert 0.91 <= share_held(measure, 200, width) <= 0.99


# python -m pytest -m slow -s tests/evaluation/test_coverage.py    (90 s on one core) gave
#
#     width, likeness, shift    FID     KID
#     4,  0.8, 0.5              0.951   0.946
#     8,  0.8, 0.3              0.951   0.946
#     8,  0.5, 0.3              0.954   0.941
#     16, 0.8, 0.3              0.948   0.955
#     16, 0.8, 0.1              0.965   0.956
#     64, 0.8, 0.3              0.967   0.960
#
# Without the patients, 600 draws: 0.898 and 0.902 at width 8, 0.907 and 0.910 at width 16.
@pytest.mark.slow
@pytest.mark.parametrize("measure", [by_fid, by_kid])
@pytest.mark.parametrize(
    ("width", "likeness", "shift"),
    [(4, 0.8, 0.5), (8, 0.8, 0.3), (8, 0.5, 0.3), (16, 0.8, 0.3), (16, 0.8, 0.1), (64, 0.8, 0.3)],
)
def test_intervals_hold_the_truth_in_many_draws(measure, width, likeness, shift):
    share = share_held(measure, 2000, width, likeness, shift)
    print(f"\n{measure.__name__} {width} {likeness} {shift}: {share:.3f}")
    assert 0.93 <= share <= 0.97

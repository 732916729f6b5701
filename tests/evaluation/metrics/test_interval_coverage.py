"""KID's and FID's 95 % intervals hold the truth that often, three images per patient or not."""

import numpy as np
import pytest

from medsd_jax.evaluation.metrics.frechet import frechet_distance, moments_of
from medsd_jax.evaluation.metrics.frechet_error import frechet_interval, frechet_standard_error
from medsd_jax.evaluation.metrics.kid import kid

WIDTH, PATIENTS, IMAGES, SYNTHETIC = 8, 60, 3, 180
PATIENT_OF_IMAGE = np.repeat(np.arange(PATIENTS), IMAGES).astype(str).tolist()
MIXING = np.random.default_rng(99).normal(size=(2, WIDTH, WIDTH)) / np.sqrt(WIDTH)


def draw(seed):
    """Images of one patient share four fifths of their variance; features as after ReLU."""
    rng = np.random.default_rng(seed)
    own = np.repeat(rng.normal(size=(PATIENTS, WIDTH)), IMAGES, axis=0)
    real = np.sqrt(0.8) * own + np.sqrt(0.2) * rng.normal(size=own.shape)
    synthetic = rng.normal(size=(SYNTHETIC, WIDTH))
    return (
        np.maximum(real @ MIXING[0], 0.0),
        np.maximum(synthetic @ (MIXING[0] + 0.4 * MIXING[1]) + 0.3, 0.0),
    )


def kid_interval(real, synthetic, patients):
    result = kid(real, synthetic, real_groups=patients)
    return result.value, *result.interval()


def fid_interval(real, synthetic, patients):
    value = frechet_distance(moments_of(real), moments_of(synthetic))
    error = frechet_standard_error(real, synthetic, patients=patients)
    return value, *frechet_interval(value, error, min(len(set(patients)), len(synthetic)))


def share_that_holds_the_truth(interval, rounds, patients=PATIENT_OF_IMAGE):
    """FID's interval is of its mean over draws: it says nothing of the bias."""
    result = np.array([interval(*draw(seed), patients) for seed in range(rounds)])
    truth = result[:, 0].mean()
    return np.mean((result[:, 1] <= truth) & (truth <= result[:, 2]))


@pytest.mark.parametrize("interval", [kid_interval, fid_interval])
def test_three_images_per_patient(interval):
    # 400 rounds know a share of 95 % to 1.1 %.
    assert 0.925 <= share_that_holds_the_truth(interval, 400) <= 0.98
    each = [str(i) for i in range(PATIENTS * IMAGES)]
    assert share_that_holds_the_truth(interval, 400, each) < 0.92  # what is prevented


@pytest.mark.slow
@pytest.mark.parametrize("interval", [kid_interval, fid_interval])
def test_three_images_per_patient_at_length(interval):
    assert 0.93 <= share_that_holds_the_truth(interval, 3000) <= 0.97

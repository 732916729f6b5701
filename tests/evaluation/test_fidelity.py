"""The summary of a feature space, and the failures it must show."""

import numpy as np
import pytest

from medsd_jax.evaluation.fidelity import fidelity

WIDTH = 6


@pytest.fixture(scope="module")
def real():
    return np.random.default_rng(0).normal(size=(240, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def alike(real):
    """Another draw of the same distribution."""
    other = np.random.default_rng(1).normal(size=(200, WIDTH)).astype(np.float32)
    return fidelity(real, other)


def test_two_draws_of_one_distribution(alike):
    halves = alike["fid_real_halves"]
    assert halves["pictures"] == 120 and halves["range"][0] <= halves["mean"] <= halves["range"][1]
    # As far apart as two halves of the real set, which are smaller.
    assert alike["fid"] < 2 * halves["mean"]
    assert abs(alike["kid"]["value"]) < 3 * alike["kid"]["standard_error"]
    assert min(alike[name] for name in ("precision", "recall", "coverage")) > 0.85


def test_mode_collapse_lowers_recall_and_coverage(real, alike):
    rng = np.random.default_rng(2)
    few = real[rng.integers(0, 3, 200)] + 0.01 * rng.normal(size=(200, WIDTH))
    collapsed = fidelity(real, few.astype(np.float32))
    assert collapsed["recall"] < 0.2 < alike["recall"]
    assert collapsed["coverage"] < 0.2 < alike["coverage"]
    assert collapsed["fid"] > 5 * alike["fid"]


def test_a_shift_shows_everywhere(real, alike):
    shifted = np.random.default_rng(1).normal(3.0, 1.0, (200, WIDTH)).astype(np.float32)
    apart = fidelity(real, shifted)
    # The Frechet distance of two unit Gaussians is the squared distance of their means.
    assert apart["fid"] == pytest.approx(WIDTH * 3.0**2, rel=0.1)
    assert apart["precision"] < 0.1 < alike["precision"]
    assert apart["kid"]["value"] > 10 * apart["kid"]["standard_error"]


def test_equal_seeds_give_equal_numbers(real):
    other = real[:100] + np.float32(0.1)
    assert fidelity(real, other, seed=3) == fidelity(real, other, seed=3)

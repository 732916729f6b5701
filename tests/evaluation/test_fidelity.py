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
    assert alike["fid"]["value"] < 2 * halves["mean"]
    low, high = alike["kid"]["ci95"]
    assert low < 0 < high
    assert min(alike[name]["value"] for name in ("precision", "recall", "coverage")) > 0.85


def test_mode_collapse_lowers_recall_and_coverage(real, alike):
    rng = np.random.default_rng(2)
    few = real[rng.integers(0, 3, 200)] + 0.01 * rng.normal(size=(200, WIDTH))
    collapsed = fidelity(real, few.astype(np.float32))
    assert collapsed["recall"]["value"] < 0.2 < alike["recall"]["value"]
    assert collapsed["coverage"]["value"] < 0.2 < alike["coverage"]["value"]
    assert collapsed["fid"]["value"] > 5 * alike["fid"]["value"]


def test_a_shift_shows_everywhere(real, alike):
    shifted = np.random.default_rng(1).normal(3.0, 1.0, (200, WIDTH)).astype(np.float32)
    apart = fidelity(real, shifted)
    # The Frechet distance of two unit Gaussians is the squared distance of their means.
    assert apart["fid"]["value"] == pytest.approx(WIDTH * 3.0**2, rel=0.1)
    assert apart["precision"]["value"] < 0.1 < alike["precision"]["value"]
    assert apart["kid"]["ci95"][0] > 0.8 * apart["kid"]["value"] > 0


def test_equal_seeds_give_equal_numbers(real):
    other = real[:100] + np.float32(0.1)
    assert fidelity(real, other, seed=3) == fidelity(real, other, seed=3)


def test_intervals_hold_their_values_and_patients_widen_them(real):
    other = np.random.default_rng(1).normal(size=(200, WIDTH)).astype(np.float32)
    found = fidelity(real, other)
    for name in ("fid", "kid", "precision", "recall", "density", "coverage"):
        low, high = found[name]["ci95"]
        assert low <= found[name]["value"] <= high and low < high, name
    assert found["precision"]["n"] == 200 and found["recall"]["n"] == 240
    # Two patients with 120 alike pictures each know next to nothing.
    patients = ["a"] * 120 + ["b"] * 120
    shifted = np.concatenate([real[:120], real[120:] + 1.0])
    wide, narrow = (fidelity(shifted, other, real_patients=p)["coverage"] for p in (patients, None))
    assert wide["n"] == 2 and np.diff(wide["ci95"]) > 2 * np.diff(narrow["ci95"])

"""Training the classifier: the loss against torch, unknown labels, augmentation, calibration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medsd_jax.classifier.calibration import calibrate
from medsd_jax.classifier.model import Classifier, predict
from medsd_jax.classifier.training import Augmentation, classification_loss, fit, make_step
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.training.state import init_state
from medsd_jax.vision.densenet import random_params
from tests.tiny.classifier import tiny_network

STILL = Augmentation(shift=0.0, contrast=0.0, brightness=0.0)
NETWORK = tiny_network(1)


def test_loss_equals_torch_on_the_known_labels():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=5, size=(7, 3)).astype(np.float32)
    targets = rng.integers(0, 2, (7, 3)).astype(np.float32)
    targets[[0, 3, 3], [1, 0, 2]] = np.nan
    known = ~np.isnan(targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits[known]), torch.tensor(targets[known])
    )
    loss = classification_loss(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_unknown_labels_have_no_gradient():
    targets = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan]])
    grads = jax.grad(classification_loss)(jnp.ones((2, 2)), targets)
    np.testing.assert_array_equal(np.asarray(grads) != 0, [[True, False], [False, False]])
    assert classification_loss(jnp.ones((2, 2)), jnp.full((2, 2), jnp.nan)) == 0.0


def test_augmentation_moves_and_does_not_mirror():
    """A single bright row and column stay a row and a column, at most the shift away."""
    cross = np.full((64, 20, 20, 1), -1.0, np.float32)
    cross[:, 10], cross[:, :, 4] = 1.0, 1.0
    moved = np.asarray(Augmentation(0.1, 0.0, 0.0)(jnp.asarray(cross), jax.random.key(0)))[..., 0]
    rows = np.array([np.flatnonzero((image == 1).all(axis=1)) for image in moved])
    columns = np.array([np.flatnonzero((image == 1).all(axis=0)) for image in moved])
    assert set(rows.ravel()) == {8, 9, 10, 11, 12} and set(columns.ravel()) == {2, 3, 4, 5, 6}


def test_augmentation_changes_grey_values_within_its_range():
    ones = jnp.full((500, 4, 4, 1), 0.5)
    changed = np.asarray(Augmentation(0.0, 0.2, 0.1)(ones, jax.random.key(0)))[:, 0, 0, 0]
    assert 0.3 <= changed.min() < 0.33 and 0.67 < changed.max() <= 0.7
    np.testing.assert_array_equal(STILL(ones, jax.random.key(1)), ones)


def test_step_draws_fresh_augmentation_each_time():
    tx = optax.sgd(0.0)
    step = jax.jit(make_step(NETWORK, tx, Augmentation(0.1, 0.3, 0.3)))
    params = random_params(NETWORK, np.random.default_rng(0))
    state = init_state({k: jnp.asarray(x) for k, x in params.items()}, tx, ema=False)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
        "targets": np.float32([[1], [0], [1], [0]]),
    }
    losses = []
    for _ in range(2):
        state, metrics = step(state, {}, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1]  # the weights did not move


def test_it_learns_and_is_calibrated():
    """Bright squares on noise: learnt in a few steps over all devices."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (256, 1)).astype(np.float32)
    images = rng.normal(0, 0.2, (256, 16, 16)).astype(np.float32)
    images[targets[:, 0] == 1, 4:10, 4:10] += 0.8
    grey = np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    colour = np.repeat(grey[..., None], 3, axis=-1)

    def batches():
        for i in itertools.count():
            rows = np.arange(i * 32, (i + 1) * 32) % 192
            yield {"images": colour[rows], "targets": targets[rows]}

    seen = []
    params = fit(
        random_params(NETWORK, rng), NETWORK, batches(), optax.adam(1e-2), steps=40, augment=STILL,
        seed=0, mesh=make_mesh({"data": -1}), on_step=lambda i, m: seen.append(float(m["loss"])),
    )  # fmt: skip
    assert len(seen) == 40 and seen[-1] < 0.2 < seen[0]
    one = np.ones(1, np.float32)
    classifier = Classifier(NETWORK, ("square",), 16, "pad", params, one, 0 * one)
    right = (predict(classifier, colour[192:]) > 0.5) == (targets[192:] > 0.5)
    assert right.mean() > 0.95


def test_calibration_finds_the_distortion():
    """Labels drawn from sigmoid(0.5 s - 1): slope and intercept come back from the scores."""
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=4, size=(20_000, 1))
    targets = (rng.random((20_000, 1)) < 1 / (1 + np.exp(-(0.5 * scores - 1)))).astype(np.float32)
    slope, intercept = calibrate(scores, targets)
    # Standard errors of a logistic fit at this n are about 0.008 and 0.02.
    np.testing.assert_allclose(slope, [0.5], atol=0.03)
    np.testing.assert_allclose(intercept, [-1.0], atol=0.08)


def test_calibration_equals_scikit_learn():
    sklearn_calibration = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(300, 1))
    targets = (scores + rng.normal(size=(300, 1)) > 0).astype(np.float32)
    slope, intercept = calibrate(scores, targets)
    # Its private Platt scaling is sigmoid(-(a s + b)) with the same drawn-in targets.
    a, b = sklearn_calibration._sigmoid_calibration(scores[:, 0], targets[:, 0])
    np.testing.assert_allclose([slope[0], intercept[0]], [-a, -b], atol=2e-3)


def test_calibration_never_inverts():
    """Six images by chance in the wrong order: the scores' order is kept, confidence is not."""
    scores = np.float32([[1], [2], [3], [4], [5], [6]])
    slope, intercept = calibrate(scores, np.float32([[1], [1], [1], [0], [0], [0]]))
    assert slope[0] > 0
    probabilities = 1 / (1 + np.exp(-(slope[0] * scores + intercept[0])))
    assert np.abs(probabilities - 0.5).max() < 0.01


def test_calibration_of_separated_or_single_kinds_is_finite():
    scores = np.float32([[-3, 1], [-2, 2], [2, 3], [5, 4]])
    targets = np.float32([[0, 1], [0, 1], [1, 1], [1, np.nan]])
    slope, intercept = calibrate(scores, targets)
    assert np.isfinite(slope).all() and slope[0] > 0
    assert (slope[1], intercept[1]) == (1.0, 0.0)

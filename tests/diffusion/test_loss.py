"""Loss and min-SNR weights: independent formulas, limits, gradients, masks."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.diffusion.loss import diffusion_loss, min_snr_weights
from medsd_jax.diffusion.process import add_noise, target

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
EVERY_TIME = jnp.arange(1000)


@pytest.mark.torch
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("gamma", [1, 5.0, 20.0])
def test_min_snr_weights_match_the_training_example_of_diffusers(
    make_schedule, prediction_type, gamma
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        diffusers = pytest.importorskip("diffusers")
        from diffusers.training_utils import compute_snr
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    snr = compute_snr(scheduler, torch.arange(1000)).numpy().astype(np.float64)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": np.ones_like(snr)}
    expected = np.minimum(snr, gamma) / divisor[prediction_type]
    actual = min_snr_weights(make_schedule(prediction_type=prediction_type), EVERY_TIME, gamma)
    # The float32 of 1 - a at t = 0 has 3e-5 relative.
    np.testing.assert_allclose(actual, expected, rtol=5e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_at_every_snr(make_schedule, prediction_type):
    schedule = make_schedule(rescale_betas_zero_snr=True, prediction_type=prediction_type)
    weights = np.asarray(min_snr_weights(schedule, EVERY_TIME, 5.0))
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert weights[-1] == {"epsilon": 1.0, "v_prediction": 0.0, "sample": 0.0}[prediction_type]
    # Approaching zero SNR: w -> 1, snr, snr.
    snr = float(schedule.snr(EVERY_TIME[-2:])[0])
    limit = {"epsilon": 1.0, "v_prediction": snr, "sample": snr}[prediction_type]
    np.testing.assert_allclose(weights[-2], limit, rtol=1e-5)
    # A gamma beyond all SNRs leaves the plain squared error of x0, said in the other errors.
    plain = {"epsilon": np.ones(1000), "sample": schedule.snr(EVERY_TIME)}
    plain["v_prediction"] = schedule.alphas_cumprod
    unbounded = min_snr_weights(schedule, EVERY_TIME, 1e9)
    np.testing.assert_allclose(unbounded, plain[prediction_type], rtol=1e-6)


def test_the_same_error_of_x0_costs_the_same_in_every_prediction_type(make_schedule, latents):
    """Weight times squared error does not depend on how the network says it."""
    x0, noise, error = latents
    t = jnp.array([3, 200, 600, 990])
    losses = []
    for prediction_type in PREDICTION_TYPES:
        schedule = make_schedule(prediction_type=prediction_type)
        a = schedule.alphas_cumprod[t][:, None, None, None]
        x_t, wrong_x0 = add_noise(schedule, x0, noise, t), x0 + error
        wrong_noise = (x_t - jnp.sqrt(a) * wrong_x0) / jnp.sqrt(1 - a)
        output = {
            "epsilon": wrong_noise,
            "v_prediction": jnp.sqrt(a) * wrong_noise - jnp.sqrt(1 - a) * wrong_x0,
            "sample": wrong_x0,
        }[prediction_type]
        weights = min_snr_weights(schedule, t, 5.0)
        losses.append(diffusion_loss(output, target(schedule, x0, noise, t), weights))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)


def test_loss_is_the_weighted_mean_in_float32(latents):
    output, y, _ = latents
    weights = jnp.array([0.0, 1.0, 2.0, 0.5])
    square = (np.asarray(output, np.float64) - np.asarray(y, np.float64)) ** 2
    np.testing.assert_allclose(diffusion_loss(output, y), square.mean(), rtol=1e-6)
    expected = (square.mean(axis=(1, 2, 3)) * np.asarray(weights)).mean()
    np.testing.assert_allclose(diffusion_loss(output, y, weights), expected, rtol=1e-6)
    assert diffusion_loss(output.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).dtype == jnp.float32


def test_a_mask_of_pixels_and_a_mask_of_examples(latents):
    output, y, _ = latents
    square = (np.asarray(output, np.float64) - np.asarray(y, np.float64)) ** 2
    pixels = np.zeros((4, 3, 5, 1), bool)
    pixels[:, 1:, 2:] = True
    expected = square[:, 1:, 2:].mean()
    np.testing.assert_allclose(
        diffusion_loss(output, y, mask=jnp.asarray(pixels)), expected, rtol=1e-6
    )

    # A padded batch has the loss of its real examples, whatever the padding holds.
    examples = jnp.array([1.0, 1.0, 0.0, 0.0])[:, None, None, None]
    weights = jnp.array([1.0, 3.0, 9.0, 9.0])
    padded = output.at[2:].set(jnp.nan)
    expected = diffusion_loss(output[:2], y[:2], weights[:2])
    np.testing.assert_allclose(diffusion_loss(padded, y, weights, examples), expected, rtol=1e-6)
    assert diffusion_loss(output, y, mask=jnp.zeros((1, 1, 1, 1))) == 0.0


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_gradient_matches_finite_differences_in_float64(make_schedule, latents, prediction_type):
    """Through noising, target, weights and loss, for the scale and the shift of a network."""
    x0, noise, _ = latents
    t = jnp.array([1, 300, 700, 999])
    schedule = make_schedule(rescale_betas_zero_snr=True, prediction_type=prediction_type)

    def loss(parameters):
        x_t = add_noise(schedule, x0, noise, t)
        output = parameters[0] * jnp.tanh(x_t) + parameters[1]
        weights = min_snr_weights(schedule, t, 5.0)
        return diffusion_loss(output, target(schedule, x0, noise, t), weights)

    a = np.asarray(schedule.alphas_cumprod, np.float64)[np.asarray(t)]
    clean, eps = (np.asarray(x, np.float64) for x in (x0, noise))
    sa, sb = np.sqrt(a)[:, None, None, None], np.sqrt(1 - a)[:, None, None, None]
    y = {"epsilon": eps, "v_prediction": sa * eps - sb * clean, "sample": clean}[prediction_type]
    snr = np.maximum(a / (1 - a), 1e-300)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[prediction_type]
    w = np.minimum(snr, 5.0) / divisor

    def reference(parameters):
        output = parameters[0] * np.tanh(sa * clean + sb * eps) + parameters[1]
        return (w * ((output - y) ** 2).mean(axis=(1, 2, 3))).mean()

    point, step = np.array([0.7, 0.1]), 1e-4
    differences = [
        (reference(point + step * axis) - reference(point - step * axis)) / (2 * step)
        for axis in np.eye(2)
    ]
    gradient = jax.grad(loss)(jnp.asarray(point, jnp.float32))
    assert np.isfinite(gradient).all()
    # The loss is quadratic, so that central differences are exact but for float64's 1e-12.
    np.testing.assert_allclose(gradient, differences, rtol=2e-5, atol=1e-6)

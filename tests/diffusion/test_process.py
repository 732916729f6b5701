"""Noising and the prediction types: diffusers, algebra, and the ends of the schedule."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.diffusion.process import add_noise, predict_noise, predict_x0, target, velocity

TIMES = jnp.array([0, 1, 500, 999])


@pytest.mark.torch
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noising_and_velocity_match_diffusers(make_schedule, latents, zero_snr):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        diffusers = pytest.importorskip("diffusers")
    x0, noise, _ = latents
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=zero_snr,
    )
    schedule = make_schedule(rescale_betas_zero_snr=zero_snr)
    arguments = [torch.from_numpy(np.array(x)) for x in (x0, noise, TIMES)]
    # The tables differ by up to 2e-7 near t = 0 (see test_schedule.py), where that is 3e-4 of
    # 1 - a and moves its root, 0.03, by 4e-6.
    for ours, theirs in ((add_noise, scheduler.add_noise), (velocity, scheduler.get_velocity)):
        expected = theirs(*arguments).numpy()
        np.testing.assert_allclose(ours(schedule, x0, noise, TIMES), expected, atol=1e-5, rtol=0)


def test_the_last_time_of_a_zero_snr_schedule_is_pure_noise(make_schedule, latents):
    x0, noise, _ = latents
    t = jnp.full(4, 999)
    schedule = make_schedule(rescale_betas_zero_snr=True)
    np.testing.assert_array_equal(add_noise(schedule, x0, noise, t), noise)
    np.testing.assert_array_equal(velocity(schedule, x0, noise, t), -x0)
    residue = np.abs(add_noise(make_schedule(), x0, noise, t) - noise).max()
    assert residue > 0.05  # and without the rescaling it is not


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_true_target_gives_back_latents_and_noise(make_schedule, latents, prediction_type):
    x0, noise, _ = latents
    schedule = make_schedule(prediction_type=prediction_type)
    x_t = add_noise(schedule, x0, noise, TIMES)
    output = target(schedule, x0, noise, TIMES)
    # Dividing by sqrt(a) >= 0.068 or sqrt(b) >= 0.029 multiplies rounding (3e-7) by up to 34.
    np.testing.assert_allclose(predict_x0(schedule, output, x_t, TIMES), x0, atol=2e-5)
    np.testing.assert_allclose(predict_noise(schedule, output, x_t, TIMES), noise, atol=2e-5)


def test_targets_by_name(make_schedule, latents):
    x0, noise, _ = latents
    arguments = (x0, noise, TIMES)
    np.testing.assert_array_equal(target(make_schedule(), *arguments), noise)
    sample, v = (make_schedule(prediction_type=p) for p in ("sample", "v_prediction"))
    np.testing.assert_array_equal(target(sample, *arguments), x0)
    np.testing.assert_array_equal(target(v, *arguments), velocity(v, *arguments))


def test_epsilon_at_zero_snr_is_infinite_and_v_is_not(make_schedule, latents):
    _, noise, output = latents
    t = jnp.full(4, 999)
    epsilon = make_schedule(rescale_betas_zero_snr=True)
    assert np.isinf(predict_x0(epsilon, output, noise, t)).all()
    v = make_schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    np.testing.assert_array_equal(predict_x0(v, output, noise, t), -output)
    np.testing.assert_array_equal(predict_noise(v, output, noise, t), noise)


def test_half_precision_inputs_are_computed_in_float32(make_schedule, latents):
    x0, noise, _ = (x.astype(jnp.bfloat16) for x in latents)
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        schedule = make_schedule(prediction_type=prediction_type)
        x_t = add_noise(schedule, x0, noise, TIMES)
        results = [x_t, target(schedule, x0, noise, TIMES), predict_x0(schedule, noise, x_t, TIMES)]
        assert {x.dtype for x in results} == {jnp.dtype("float32")}

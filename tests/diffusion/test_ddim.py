"""DDIM in the loop: invariants, one compilation, agreement with the single step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.diffusion.ddim import DDIM, ddim_step
from medsd_jax.diffusion.process import add_noise
from medsd_jax.diffusion.samplers import make_step_table
from medsd_jax.diffusion.sampling_loop import run_sampler
from medsd_jax.errors import UserError

SHAPE = (2, 3, 3, 4)
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


def normal(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def ddim_table(config, num_steps, max_steps, eta=0.0):
    return make_step_table("ddim", config, num_steps, max_steps, eta=eta)


def step_noise(i):
    return jax.random.normal(jax.random.fold_in(jax.random.key(5), i), SHAPE)


def all_knowing(schedule, x0):
    """The network that finds the noise in any x_t: the output that belongs to the true x0."""

    def denoise(x, t):
        a = schedule.alphas_cumprod[t][:, None, None, None]
        noise = (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)
        v = jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x0
        return {"epsilon": noise, "v_prediction": v, "sample": x0}[schedule.prediction_type]

    return denoise


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_true_noise_leads_to_x0(make_config, make_schedule, prediction_type):
    """Whatever fresh noise is mixed in, and also where the step and the spacing disagree."""
    x0 = normal(0)

    @jax.jit
    def sample(schedule, table):
        denoise = all_knowing(schedule, x0)
        return run_sampler(DDIM(), denoise, schedule, normal(1), table, step_noise)

    for spacing in ("leading", "trailing", "linspace"):
        options = {
            "prediction_type": prediction_type,
            "timestep_spacing": spacing,
            "set_alpha_to_one": True,
        }
        for eta in (0.0, 0.7, 1.0):
            table = ddim_table(make_config(**options), 8, 10, eta)
            result = sample(make_schedule(**options), table)
            # The first x0 is divided by sqrt(a) = 0.068: 15 times float32's 3e-7.
            np.testing.assert_allclose(result, x0, atol=1e-5, err_msg=f"{spacing}, eta {eta}")


def test_fixed_true_noise_stays_on_the_noising_path(make_config, make_schedule):
    """With eta 0 every state of the loop is add_noise of the same x0 and noise."""
    options = {"set_alpha_to_one": False, "steps_offset": 0}
    schedule = make_schedule(**options)
    x0, noise = normal(0), normal(1)
    table = ddim_table(make_config(**options), 50, 50)
    start = add_noise(schedule, x0, noise, jnp.full(2, table.times[0]))

    @jax.jit
    def sample(num_calls):
        some = dataclasses.replace(table, num_calls=num_calls)
        return run_sampler(DDIM(), lambda x, t: noise, schedule, start, some, step_noise)

    for num_steps in (1, 20, 49):
        expected = add_noise(
            schedule, x0, noise, jnp.full(2, table.columns["t_prev"][num_steps - 1])
        )
        np.testing.assert_allclose(sample(num_steps), expected, atol=1e-5)
    # The last step ends at the noise level of time 0, not at clean data.
    expected = add_noise(schedule, x0, noise, jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(sample(50), expected, atol=1e-5)
    np.testing.assert_array_equal(sample(0), start)


def test_eta_0_is_deterministic_and_eta_1_is_not(make_config, make_schedule):
    schedule = make_schedule()

    @jax.jit
    def run(table, seed):
        rng = jax.random.key(seed)

        def noise(i):
            return jax.random.normal(jax.random.fold_in(rng, i), SHAPE)

        return run_sampler(DDIM(), lambda x, t: 0.5 * x, schedule, normal(1), table, noise)

    def sample(eta, seed):
        return run(ddim_table(make_config(), 5, 5, eta), seed)

    np.testing.assert_array_equal(sample(0.0, 1), sample(0.0, 2))
    assert np.abs(sample(1.0, 1) - sample(1.0, 2)).max() > 0.1
    np.testing.assert_array_equal(sample(1.0, 1), sample(1.0, 1))


def test_eta_1_step_has_the_mean_and_variance_of_ddpm(make_schedule):
    """One step of one time with eta = 1 is the posterior of DDPM, eqs. 6 and 7."""
    schedule, t = make_schedule(), 400
    x_t, x0 = normal(0), normal(1)
    table = np.asarray(schedule.alphas_cumprod, np.float64)
    a, a_prev = table[t], table[t - 1]
    alpha = a / a_prev
    output = (x_t - np.sqrt(a) * x0) / np.sqrt(1 - a)
    arguments = (schedule, output.astype(jnp.float32), x_t, t, t - 1, 1.0)
    mean = (
        np.sqrt(a_prev) * (1 - alpha) / (1 - a) * x0 + np.sqrt(alpha) * (1 - a_prev) / (1 - a) * x_t
    )
    np.testing.assert_allclose(ddim_step(*arguments, jnp.zeros(SHAPE)), mean, atol=1e-5)
    spread = ddim_step(*arguments, jnp.ones(SHAPE)) - ddim_step(*arguments, jnp.zeros(SHAPE))
    sigma = np.sqrt((1 - a_prev) / (1 - a) * (1 - alpha))
    np.testing.assert_allclose(spread, np.full(SHAPE, sigma), atol=2e-6)


def test_eta_1_at_zero_snr_is_finite(make_schedule):
    """b_prev - sigma^2 is 0 there; rounded naively it may be negative and its root nan."""
    schedule = make_schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    step = jax.jit(ddim_step)
    for previous in range(0, 999, 7):
        result = step(schedule, normal(0), normal(1), 999, previous, 1.0, jnp.zeros(SHAPE))
        expected = -jnp.sqrt(schedule.alphas_cumprod[previous]) * normal(0)
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_clip_range_bounds_x0_and_leaves_the_noise(make_schedule):
    schedule = make_schedule(prediction_type="sample", set_alpha_to_one=True)
    clipped = ddim_step(schedule, 3 * normal(0), normal(1), 1, -1, 0.0, normal(2), clip_range=0.5)
    np.testing.assert_array_equal(clipped, jnp.clip(3 * normal(0), -0.5, 0.5))
    t, t_prev = 600, 500
    a, b = schedule.alphas_cumprod[t_prev], 1 - schedule.alphas_cumprod[t_prev]
    arguments = (schedule, 3 * normal(0), normal(1), t, t_prev, 0.0, normal(2))
    difference = ddim_step(*arguments) - ddim_step(*arguments, clip_range=0.5)
    excess = 3 * normal(0) - jnp.clip(3 * normal(0), -0.5, 0.5)
    np.testing.assert_allclose(difference, jnp.sqrt(a) * excess, atol=1e-5)
    assert b > 0.1  # the noise took part


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_one_program_for_every_number_of_steps_eta_and_spacing(
    make_config, make_schedule, prediction_type
):
    traces = []

    @jax.jit
    def sample(schedule, start, table):
        traces.append(None)

        def denoise(x, t):
            return jnp.sin(x) * (t / 1000)[:, None, None, None]

        return run_sampler(DDIM(), denoise, schedule, start, table, step_noise)

    for spacing, num_steps, eta, zero_snr in [
        ("leading", 1, 0.0, False),
        ("trailing", 7, 0.5, True),
        ("linspace", 20, 1.0, False),
    ]:
        options = {
            "prediction_type": prediction_type,
            "timestep_spacing": spacing,
            # (epsilon at zero SNR has no answer)
            "rescale_betas_zero_snr": zero_snr and prediction_type != "epsilon",
        }
        config, schedule = make_config(**options), make_schedule(**options)
        table = ddim_table(config, num_steps, 20, eta)
        result = sample(schedule, normal(1), table)

        x = normal(1)
        for i in range(num_steps):
            t, t_prev = table.times[i], table.columns["t_prev"][i]
            output = jnp.sin(x) * (t / 1000)
            x = ddim_step(schedule, output, x, t, t_prev, eta, step_noise(jnp.int32(i)))
        # Fused and unfused float32 over up to 20 steps that amplify up to 15-fold in all.
        np.testing.assert_allclose(result, x, atol=1e-4, rtol=1e-4)
    assert len(traces) == 1
    assert sample._cache_size() == 1


def test_tables_are_padded_and_step_down_by_the_ratio(make_config):
    table = ddim_table(make_config(), 4, 6)
    assert table.num_calls == 4
    assert table.times.tolist() == [751, 501, 251, 1, 1, 1, 1]
    assert table.columns["t_prev"].tolist() == [501, 251, 1, -249] + [-249] * 3
    assert table.times.dtype == table.columns["t_prev"].dtype == np.int32


def test_the_clip_of_the_file_is_applied_in_the_loop(make_config, make_schedule):
    options = {"prediction_type": "sample", "set_alpha_to_one": True, "clip_sample": True}
    table = ddim_table(make_config(**options, clip_sample_range=0.5), 5, 5)
    result = run_sampler(
        DDIM(), lambda x, t: 3 * normal(0), make_schedule(**options), normal(1), table, step_noise
    )
    np.testing.assert_allclose(result, jnp.clip(3 * normal(0), -0.5, 0.5), atol=1e-6)


def test_too_many_steps_are_refused(make_config):
    with pytest.raises(UserError, match="num_steps = 7 must be a whole number between 1 and 6"):
        ddim_table(make_config(), 7, 6)
    with pytest.raises(UserError, match="num_steps = 0 must be a whole number between 1"):
        ddim_table(make_config(), 0, 6)


def test_epsilon_from_zero_snr_is_refused(make_config):
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    ddim_table(make_config(**options, prediction_type="v_prediction"), 10, 10)
    ddim_table(make_config(**options | {"timestep_spacing": "leading"}), 10, 10)
    ddim_table(make_config(**options, clip_sample=True), 10, 10)  # the clip bounds the quotient
    with pytest.raises(UserError, match="zero SNR: ddim's first step, at time 999"):
        ddim_table(make_config(**options), 10, 10)
    # Redrawing an image starts at a later step, where there is signal.
    table = make_step_table("ddim", make_config(**options), 10, 10, strength=0.9)
    assert table.num_calls == 9 and table.times[0] < 999 and table.signal[0] > 0

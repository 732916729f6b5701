"""The samplers against diffusers' schedulers: the whole trajectory, state by state.

Both sides walk on their own from the same noise with the same made-up network, so differences add
up over the run. Tolerance 1e-5 of the largest latent of the state: float32 has 6e-8, and some 75
steps amplify by less than ten.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.diffusion.samplers import SAMPLERS, make_step_table
from medsd_jax.diffusion.sampling_loop import run_sampler
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of imports; none of them is about what is tested here
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    diffusers = pytest.importorskip("diffusers", reason="the oracle is diffusers")

pytestmark = [
    pytest.mark.torch,
    # diffusers hands torch tensors to np.array, which numpy 2 has words about.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SHAPE = (2, 3, 3, 4)
MAX_STEPS = 80
TOLERANCE = 1e-5
SAMPLER_NAMES = [name for name in SAMPLERS if name != "ddim"]  # test_ddim_parity.py has that one
OPTIONS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}


def make_theirs(name, options):
    match name:
        case "pndm":
            return diffusers.PNDMScheduler(**options, skip_prk_steps=True)
        case "dpmpp_2m" | "dpmpp_2m_karras":
            karras = name == "dpmpp_2m_karras"
            return diffusers.DPMSolverMultistepScheduler(
                **options, **_DPM, use_karras_sigmas=karras
            )
        case "euler":
            return diffusers.EulerDiscreteScheduler(**options)
        case "euler_ancestral":
            return diffusers.EulerAncestralDiscreteScheduler(**options)
    raise AssertionError(name)


def noise_of(i):
    """Unit noise of call i; -1 is the start."""
    return np.random.default_rng(i + 1).standard_normal(SHAPE).astype(np.float32)


NOISES = np.stack([noise_of(i) for i in range(MAX_STEPS + 1)])


def network(x, t, sin):
    return 0.9 * sin(1.1 * x + 0.002 * t) + 0.1 * sin(3.0 * x)


def their_states(scheduler, num_steps, monkeypatch, name):
    """Times, and the state before every call and at the end."""
    scheduler.set_timesteps(num_steps)
    if name != "pndm":
        scheduler.set_begin_index(0)  # it would look the index up by the time, which may be double
    x = torch.from_numpy(noise_of(-1)) * scheduler.init_noise_sigma
    calls = iter(range(MAX_STEPS + 1))
    if name == "euler_ancestral":
        from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

        monkeypatch.setattr(
            module, "randn_tensor", lambda *a, **k: torch.from_numpy(NOISES[next(calls)])
        )
    states = [x.numpy()]
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t, torch.sin)
        x = scheduler.step(output, t, x).prev_sample
        states.append(x.numpy())
    return scheduler.timesteps.numpy(), states


@functools.partial(jax.jit, static_argnums=0)
def our_state(name, schedule, table):
    def denoise(x, t):
        return network(x, t[:, None, None, None], jnp.sin)

    start = table.start_scale * noise_of(-1)
    return run_sampler(
        SAMPLERS[name], denoise, schedule, start, table, lambda i: jnp.asarray(NOISES)[i]
    )


def compare(name, options, num_steps, monkeypatch, tolerance=TOLERANCE):
    theirs = make_theirs(name, options)
    times, states = their_states(theirs, num_steps, monkeypatch, name)
    config = ScheduleConfig.from_dict({"_class_name": type(theirs).__name__, **options})
    table = make_step_table(name, config, num_steps, MAX_STEPS)
    schedule = NoiseSchedule.from_config(config)
    case = f"{name}, {options}, {num_steps} steps"
    assert table.num_calls == len(times), case
    np.testing.assert_array_equal(table.times[: len(times)], times, err_msg=case)
    for calls, state in enumerate(states):
        ours = our_state(name, schedule, dataclasses.replace(table, num_calls=np.int32(calls)))
        off = np.abs(np.asarray(ours) - state).max() / np.abs(state).max()
        assert off <= tolerance, f"{case}: {off} after {calls} calls"
    assert np.abs(states[-1] - states[0]).max() > 0.5 or num_steps == 1, "it does nothing"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_state_equals_diffusers(name, prediction_type, monkeypatch):
    for num_steps in (10, 50, 75):
        for spacing in ("leading", "trailing", "linspace"):
            options = {**OPTIONS, "prediction_type": prediction_type, "timestep_spacing": spacing}
            compare(name, options, num_steps, monkeypatch)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 14, 15])
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_short_runs(name, num_steps, monkeypatch):
    """Multistep samplers have not all their points yet, and the last step is special."""
    compare(name, {**OPTIONS, "timestep_spacing": "leading"}, num_steps, monkeypatch)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_karras", "euler"])
def test_ends_at_the_noise_of_time_0_where_the_file_says_so(name, monkeypatch):
    for num_steps in (10, 20):
        compare(name, {**OPTIONS, "final_sigmas_type": "sigma_min"}, num_steps, monkeypatch)


def test_pndm_ends_where_set_alpha_to_one_says(monkeypatch):
    for one in (True, False):
        options = {**OPTIONS, "set_alpha_to_one": one, "steps_offset": 0}
        compare("pndm", options, 10, monkeypatch)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_karras", "euler"])
def test_predictions_of_the_sample(name, monkeypatch):
    compare(name, {**OPTIONS, "prediction_type": "sample"}, 20, monkeypatch)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_other_schedules(name, beta_schedule, monkeypatch):
    options = {
        **OPTIONS, "beta_schedule": beta_schedule, "prediction_type": "v_prediction",
        "timestep_spacing": "leading",
    }  # fmt: skip
    compare(name, options, 20, monkeypatch)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("dpmpp_2m", TOLERANCE),
        ("dpmpp_2m_karras", TOLERANCE),
        # sigma falls from 4096 to 40 in the first step, x + (sigma_next - sigma) d cancels a
        # hundredfold: 100 times float32's 6e-8, a few times over.
        ("euler", 3 * TOLERANCE),
    ],
)
def test_zero_terminal_snr(name, tolerance, monkeypatch):
    options = {
        **OPTIONS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    }  # fmt: skip
    compare(name, options, 20, monkeypatch, tolerance)


def test_karras_times_for_all_numbers_of_steps():
    """Levels lie between training times: the rounding must go diffusers' way."""
    for beta_schedule in ("scaled_linear", "squaredcos_cap_v2"):
        options = {**OPTIONS, "beta_schedule": beta_schedule}
        theirs = make_theirs("dpmpp_2m_karras", options)
        config = ScheduleConfig.from_dict({"_class_name": "DDIMScheduler", **options})
        config = dataclasses.replace(config, clip_sample=False)
        for num_steps in range(1, 1001, 7):
            theirs.set_timesteps(num_steps)
            table = make_step_table("dpmpp_2m_karras", config, num_steps, num_steps)
            np.testing.assert_array_equal(table.times[:-1], theirs.timesteps.numpy())
            np.testing.assert_allclose(
                table.noise[:-2] / table.signal[:-2], theirs.sigmas.numpy()[:-1], rtol=1e-6
            )

"""What all samplers share: tables, the loop around them, invariants, one program, refusals."""

import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.diffusion.samplers import SAMPLERS, make_step_table
from medsd_jax.diffusion.sampling_loop import Sampler, run_sampler
from medsd_jax.diffusion.step_table import StepTable
from medsd_jax.errors import UserError

SHAPE = (2, 3, 3, 4)
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


def normal(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE)


def step_noise(i):
    return jax.random.normal(jax.random.fold_in(jax.random.key(5), i), SHAPE)


def network(x, t):
    return 0.8 * jnp.sin(x + (t / 500)[:, None, None, None])


def run(name, schedule, table, denoise=network, **hooks):
    start = table.start_scale * normal(1)
    return run_sampler(SAMPLERS[name], denoise, schedule, start, table, step_noise, **hooks)


def test_the_names_that_need_no_jax_are_those_of_the_samplers():
    """`sample --help` lists them, so they stand in a module that imports no jax."""
    assert tuple(SAMPLERS) == SAMPLER_NAMES
    code = "import sys, medsd_jax.diffusion.config; print('jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_sampler_needs_no_more_than_a_table_and_a_step(make_config, make_schedule):
    """The base class holds the rest: no history, and a network that sees the state itself."""

    class Shrink(Sampler):
        def table(self, config, num_steps, first=0):
            times = np.arange(first, num_steps, dtype=np.int32)
            return StepTable.of(times, np.ones(len(times)), np.ones(len(times)), {})

        def step(self, x, history, call):
            assert history == ()
            return x - call.row["t"] / 4 * call.output, history

    table = Shrink().table(make_config(), 3).padded(5)
    schedule = make_schedule()
    result = run_sampler(Shrink(), lambda x, t: x, schedule, normal(1), table, step_noise)
    np.testing.assert_allclose(result, (1 - 1 / 4) * (1 - 2 / 4) * normal(1), rtol=1e-6)


def test_a_table_with_a_short_column_is_refused():
    times, ones = np.arange(3, dtype=np.int32), np.ones(3)
    StepTable.of(times, ones, ones, {"sigma": ones})
    with pytest.raises(AssertionError):
        StepTable.of(times, ones, ones, {"sigma": ones[1:]})


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_that_knows_x0_leads_to_it(name, make_config, make_schedule):
    """The one that always answers with the true clean latents, by any sampler."""
    if name in ("pndm", "euler_ancestral"):
        pytest.skip("does not take predictions of the sample")
    options = {"prediction_type": "sample", "set_alpha_to_one": True}
    table = make_step_table(name, make_config(**options), 12, 12)
    result = run(name, make_schedule(**options), table, lambda x, t: normal(0))
    # The start is subtracted in parts, in Euler's case of 14.6: float32 leaves 1e-6 of it.
    np.testing.assert_allclose(result, normal(0), atol=2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_fixed_true_noise_leads_to_x0(name, make_config, make_schedule):
    """Fed the noise that was really added, a sampler finds the latents it was added to."""
    if name == "euler_ancestral":
        pytest.skip("mixes in noise of its own")
    options = {"set_alpha_to_one": True, "timestep_spacing": "leading"}
    schedule, x0, z = make_schedule(**options), normal(0), normal(2)
    table = make_step_table(name, make_config(**options), 20, 20)
    start = table.noised(0, x0, z)
    result = run_sampler(SAMPLERS[name], lambda x, t: z, schedule, start, table, step_noise)
    np.testing.assert_allclose(result, x0, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_state_is_at_the_level_that_the_table_says(name, make_config, make_schedule):
    """On the noising path, the state before call i is table.noised(i): what masks rely on."""
    if name == "euler_ancestral":
        pytest.skip("leaves the path")
    options = {"set_alpha_to_one": True, "steps_offset": 0}
    schedule, x0, z = make_schedule(**options), normal(0), normal(2)
    table = make_step_table(name, make_config(**options), 10, 10)

    @jax.jit
    def state_before(call):
        some = dataclasses.replace(table, num_calls=call)
        start = table.noised(0, x0, z)
        return run_sampler(SAMPLERS[name], lambda x, t: z, schedule, start, some, step_noise)

    for call in range(1, int(table.num_calls) + 1):
        # Karras' times are rounded, not the levels: everything else is float32.
        np.testing.assert_allclose(state_before(call), table.noised(call, x0, z), atol=5e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_program_for_all_numbers_of_steps_and_spacings(name, make_config, make_schedule):
    program = jax.jit(lambda schedule, table: run(name, schedule, table))
    results = []
    for spacing, num_steps, strength in [
        ("leading", 1, 1.0), ("leading", 13, 1.0), ("trailing", 20, 1.0), ("linspace", 20, 0.4)
    ]:  # fmt: skip
        options = {"timestep_spacing": spacing}
        table = make_step_table(name, make_config(**options), num_steps, 20, strength=strength)
        results.append(np.asarray(program(make_schedule(**options), table)))
        assert np.isfinite(results[-1]).all()
    assert program._cache_size() == 1
    assert all((a != b).any() for a, b in itertools.pairwise(results))


@pytest.mark.parametrize("name", SAMPLERS)
def test_fresh_noise_is_drawn_by_the_ancestral_sampler_alone(name, make_config, make_schedule):
    table, schedule = make_step_table(name, make_config(), 5, 5), make_schedule()

    def with_noise(seed):
        def noise(i):
            return jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), SHAPE)

        return run_sampler(SAMPLERS[name], network, schedule, normal(1), table, noise)

    differs = bool((with_noise(1) != with_noise(2)).any())
    assert differs == (name == "euler_ancestral")


@pytest.mark.parametrize("strength", [0.02, 0.3, 0.58, 0.99, 1.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_keeps_the_last_steps(name, strength, make_config):
    whole, part = (
        make_step_table(name, make_config(), 50, 50, strength=s) for s in (1.0, strength)
    )
    steps = int(50 * strength)
    times, kept = whole.times[: whole.num_calls].tolist(), part.times[: part.num_calls].tolist()
    if name == "pndm":  # the second time is visited twice, in either run
        del times[1:2], kept[1:2]
    assert kept == times[50 - steps :]


@pytest.mark.parametrize(
    ("name", "options", "settings", "message"),
    [
        ("plms", {}, {}, "sampler 'plms' is not one of ddim, pndm, dpmpp_2m"),
        ("pndm", {"prediction_type": "sample"}, {}, "'pndm' .* prediction_type='sample'"),
        ("pndm", {"rescale_betas_zero_snr": True}, {}, "'pndm' .*rescale_betas_zero_snr=True"),
        ("euler_ancestral", {"prediction_type": "sample"}, {}, "'euler_ancestral' .*='sample'"),
        *[
            (name, {"clip_sample": True}, {}, f"clip_sample=True is for sampler ddim; .* {name} ")
            for name in SAMPLERS
            if name != "ddim"
        ],
        ("euler", {}, {"eta": 0.5}, "eta = 0.5 is a setting of sampler ddim; sampler euler"),
        ("ddim", {}, {"eta": 1.5}, "eta = 1.5 must lie between 0"),
        ("ddim", {}, {"strength": 0.0}, "strength = 0.0 must be above 0"),
        ("ddim", {}, {"strength": 1.5}, "strength = 1.5 must be above 0 and at most 1"),
        ("ddim", {}, {"strength": float("nan")}, "strength = nan"),
        ("ddim", {}, {"strength": 0.01}, "strength = 0.01 leaves no step of num_steps = 10"),
        ("dpmpp_2m", {}, {"num_steps": 1000}, "num_steps=1000 of sampler dpmpp_2m"),
        ("dpmpp_2m", {"timestep_spacing": "linspace"}, {"num_steps": 1000}, "'linspace' must be"),
        ("dpmpp_2m_karras", {}, {"num_steps": 0}, "num_steps = 0 must be a whole number"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(name, options, settings, message, make_config):
    settings = {"num_steps": 10, "max_steps": 1000, **settings}
    with pytest.raises(UserError, match=message) as raised:
        make_step_table(name, make_config(**options), **settings)
    assert "\n" not in str(raised.value)


def test_the_schedule_of_the_file_is_honoured(make_config):
    """Keys that move the end of a run or its times move the tables."""
    for name in ("dpmpp_2m", "euler"):
        zero, low = (
            make_step_table(name, make_config(final_sigmas_type=kind), 20, 20)
            for kind in ("zero", "sigma_min")
        )
        assert any((zero.columns[c] != low.columns[c]).any() for c in zero.columns)
    for name in ("ddim", "pndm", "dpmpp_2m", "euler", "euler_ancestral"):
        plain, moved = (make_step_table(name, make_config(steps_offset=k), 20, 20) for k in (0, 1))
        assert (moved.times - plain.times == 1).all()

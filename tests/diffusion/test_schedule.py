"""The noise schedule and the sampling times against diffusers and against the definitions."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.diffusion.schedule import NoiseSchedule, sampling_timesteps
from medsd_jax.errors import UserError

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("diffusers")


def exact_alphas_cumprod(beta_schedule, zero_snr, size=1000):
    """The definitions in float64, without a rounding on the way."""
    match beta_schedule:
        case "linear":
            betas = [0.00085 + (0.012 - 0.00085) * t / (size - 1) for t in range(size)]
        case "scaled_linear":
            low, high = math.sqrt(0.00085), math.sqrt(0.012)
            betas = [(low + (high - low) * t / (size - 1)) ** 2 for t in range(size)]
        case "squaredcos_cap_v2":
            level = [
                math.cos((t / size + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(size + 1)
            ]
            betas = [min(1 - level[t + 1] / level[t], 0.999) for t in range(size)]
    exact = np.array([math.prod(1 - b for b in betas[: t + 1]) for t in range(size)])
    if zero_snr:
        root = np.sqrt(exact)
        exact = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return exact


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_alphas_cumprod_follow_the_definition(make_schedule, beta_schedule, zero_snr):
    schedule = make_schedule(beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr)
    actual = np.asarray(schedule.alphas_cumprod)
    exact = exact_alphas_cumprod(beta_schedule, zero_snr)
    # Rounding 1 - beta to float32 a thousand times leaves 3e-8 * sqrt(1000) = 1e-6 of a; at the
    # end, where a is small, the amplitude sqrt(a) is what enters the noising.
    np.testing.assert_allclose(np.sqrt(actual), np.sqrt(exact), atol=1e-6, rtol=0)
    if not zero_snr:
        np.testing.assert_allclose(actual[:-1], exact[:-1], rtol=2e-6)
    assert actual.dtype == np.float32
    assert np.all(np.diff(actual) < 0)
    assert (actual[-1] == 0.0) == zero_snr


@pytest.mark.torch
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_alphas_cumprod_match_diffusers(make_schedule, diffusers, beta_schedule, zero_snr):
    options = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    ours = make_schedule(**options, set_alpha_to_one=False)
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, **options
    )
    theirs_cumprod = theirs.alphas_cumprod.numpy()
    # Rescaling starts from square roots, of which torch rounds some the wrong way on some CPUs, and
    # then rounds 1 - beta anew: 3e-8 * sqrt(1000), as above.
    np.testing.assert_allclose(ours.alphas_cumprod, theirs_cumprod, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        ours.final_alpha_cumprod, theirs.final_alpha_cumprod.numpy(), atol=1e-6, rtol=0
    )
    if not zero_snr:
        np.testing.assert_allclose(ours.alphas_cumprod, theirs_cumprod, rtol=5e-7)


@pytest.mark.torch
@pytest.mark.parametrize("zero_snr", [False, True])
def test_with_correct_roots_the_cosine_table_is_that_of_diffusers(
    make_schedule, diffusers, zero_snr, monkeypatch
):
    """Bit for bit: torch's square root is all that sets the rescaled schedules apart."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.sqrt(x.numpy())))
    options = {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": zero_snr}
    theirs = diffusers.DDIMScheduler(**options).alphas_cumprod.numpy()
    np.testing.assert_array_equal(make_schedule(**options).alphas_cumprod, theirs)


def test_trained_betas_replace_the_named_schedule(make_schedule):
    betas = [0.1, 0.2, 0.3, 0.5]
    schedule = make_schedule(trained_betas=betas, num_train_timesteps=4)
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.72, 0.504, 0.252], rtol=1e-6)
    np.testing.assert_allclose(schedule.final_alpha_cumprod, 0.9, rtol=1e-6)


def test_final_alpha(make_schedule):
    assert make_schedule(set_alpha_to_one=True).final_alpha_cumprod == 1.0
    schedule = make_schedule(set_alpha_to_one=False)
    assert schedule.final_alpha_cumprod == schedule.alphas_cumprod[0]


def test_snr(make_schedule):
    t = jnp.array([0, 500, 998, 999])
    schedule = make_schedule(rescale_betas_zero_snr=True)
    a = np.asarray(schedule.alphas_cumprod, np.float64)[np.asarray(t)]
    np.testing.assert_allclose(schedule.snr(t), a / (1 - a), rtol=1e-6)
    assert schedule.snr(t)[-1] == 0.0


def test_a_schedule_is_a_pytree_with_static_names(make_schedule):
    schedule = make_schedule(prediction_type="v_prediction")
    assert len(jax.tree.leaves(schedule)) == 2
    shapes = jax.eval_shape(lambda s: s, schedule)  # rebuilt with shapes for leaves
    assert shapes.alphas_cumprod.shape == (1000,)
    assert jax.tree.map(lambda _: True, schedule).prediction_type == "v_prediction"
    traced = jax.jit(lambda s: (s, jnp.float32(s.num_train_timesteps)))(schedule)
    assert isinstance(traced[0], NoiseSchedule)
    assert traced[1] == 1000


@pytest.mark.torch
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("size", [1000, 300])
def test_every_number_of_steps_matches_diffusers(make_config, diffusers, spacing, size):
    options = {"timestep_spacing": spacing, "steps_offset": 1, "num_train_timesteps": size}
    config = make_config(**options)
    scheduler = diffusers.DDIMScheduler(**options)
    surplus = refused = 0
    for num_steps in range(1, size + 1):
        scheduler.set_timesteps(num_steps)
        theirs = scheduler.timesteps.numpy()
        if theirs.max() >= size:
            with pytest.raises(UserError, match=f"num_steps={num_steps} .*{size}, beyond"):
                sampling_timesteps(config, num_steps)
            refused += 1
            continue
        if len(theirs) > num_steps:
            # A defect of diffusers: the surplus time is -1, which it would look up as T - 1.
            assert theirs[num_steps:].tolist() == [-1]
            surplus += 1
        ours = sampling_timesteps(config, num_steps)
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, theirs[:num_steps])
    assert (surplus > 0) == (spacing == "trailing")
    assert refused == (spacing == "leading")  # num_steps = T with an offset of 1


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(make_config, num_steps):
    with pytest.raises(UserError, match=rf"num_steps={num_steps} must be between 1 and 1000"):
        sampling_timesteps(make_config(), num_steps)

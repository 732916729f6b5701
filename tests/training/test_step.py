"""Properties of the train step that need no oracle: caption dropout, accumulation, freezing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medsd_jax.adaptation.full import full
from medsd_jax.training.accumulation import accumulated_grad, split_micro_batches
from medsd_jax.training.step import draw, encode_images, eval_draws, make_eval_step
from tests.tiny.networks import jit
from tests.tiny.training import (
    TEXT,
    UNET,
    diffusion_model,
    empty_prompt_ids,
    make_batch,
    make_run,
    tiny_model,
)


@pytest.fixture(scope="module")
def step_fn():
    """batch -> (state whose opt_state is the gradient, metrics) of one step; U-Net and text."""
    step, state, frozen = make_run(patterns=(UNET, TEXT))
    step = jit(step)
    return lambda batch: step(state, frozen, batch, jax.random.key(5))


def test_accumulation_changes_nothing(step_fn):
    batch = make_batch(4, latents=True)
    whole, whole_metrics = step_fn(batch)
    step, state, frozen = make_run(patterns=(UNET, TEXT), accumulation_steps=2)
    after, metrics = jit(step)(state, frozen, batch, jax.random.key(5))
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], rtol=1e-6)
    for name, grad in whole.opt_state.items():
        # The gradient of a key bias is 0 but for rounding: see test_step_parity.py.
        scale = np.abs(whole.opt_state[name.replace("k_proj", "q_proj")]).max()
        np.testing.assert_allclose(
            after.opt_state[name], grad, rtol=0, atol=2e-5 * scale, err_msg=name
        )


def test_micro_batches_hold_every_row_once():
    rows = np.arange(12)[:, None]
    micro = split_micro_batches({"x": rows}, 3)["x"]
    assert micro.shape == (3, 4, 1)
    np.testing.assert_array_equal(micro[1, :, 0], [1, 4, 7, 10])
    assert sorted(micro.ravel()) == list(range(12))


def test_accumulated_scalars_are_means():
    loss = lambda w, x: (jnp.mean(w * x**2), {"mean": jnp.mean(x)})  # noqa: E731
    x = np.arange(8, dtype=np.float32)
    for steps in (1, 4):
        scalars, grad = accumulated_grad(loss, jnp.float32(3.0), x, steps)
        assert float(scalars["loss"]) == 3 * np.mean(x**2)
        assert float(scalars["mean"]) == np.mean(x)
        assert float(grad) == np.mean(x**2)


def test_dropped_captions_are_the_empty_prompt(step_fn):
    """With all captions dropped the loss is that of empty prompts, and not that of the captions."""
    batch = make_batch(4, latents=True)
    step, state, frozen = make_run(patterns=(UNET,), caption_dropout=0.999999)
    dropped = float(jit(step)(state, frozen, batch, jax.random.key(5))[1]["loss"])
    empty = {**batch, "prompt_ids": np.tile(empty_prompt_ids(), (4, 1))}
    assert dropped == pytest.approx(float(step_fn(empty)[1]["loss"]), rel=1e-6)
    assert dropped != pytest.approx(float(step_fn(batch)[1]["loss"]), rel=1e-5)


def test_draws():
    """Rates, ranges and moments of a step's random numbers; other steps draw others."""
    moments = np.zeros((4000, 2, 2, 8), np.float32)
    batch = {"latent_moments": moments}
    one, two = (
        draw(diffusion_model(), batch, jax.random.key(seed), caption_dropout=0.1) for seed in (0, 1)
    )
    assert one.noise.shape == one.posterior.shape == (4000, 2, 2, 4)
    for normal in (one.noise, one.posterior):
        assert abs(float(normal.mean())) < 0.03 and abs(float(normal.std()) - 1) < 0.03
    assert abs(float(jnp.mean(one.noise * one.posterior))) < 0.03
    assert int(one.timesteps.min()) == 0 and 995 <= int(one.timesteps.max()) <= 999
    assert abs(float(one.timesteps.mean()) - 499.5) < 20
    assert abs(float(one.drop_caption.mean()) - 0.1) < 0.02
    assert not np.any(one.noise == two.noise) and np.any(one.timesteps != two.timesteps)


def test_every_step_draws_anew_and_frozen_weights_stay():
    """Two steps in a row with donation; the noise of both differs, as their losses show."""
    step, state, frozen = make_run(tx=optax.sgd(0.0))
    before = {name: np.array(x) for name, x in frozen.items()}
    frozen = jax.device_put(frozen)
    step = jit(step, donate_argnums=0)
    losses = []
    for _ in range(2):
        consumed = jax.tree.leaves(state)
        state, metrics = step(state, frozen, make_batch(4, latents=True), jax.random.key(5))
        losses.append(float(metrics["loss"]))
        assert all(x.is_deleted() for x in consumed)  # nothing is on the device twice
    assert losses[0] != losses[1]
    assert int(state.step) == 2
    for name, x in before.items():
        np.testing.assert_array_equal(frozen[name], x, err_msg=name)


def test_cached_moments_give_the_same_latents():
    model, batch = diffusion_model(), make_batch(2)
    params = tiny_model().params
    mean, logvar = jit(lambda p, b: encode_images(model, p, b))(params, batch)
    moments = np.concatenate([mean, logvar], axis=-1)
    again = encode_images(model, {}, {"latent_moments": moments})
    np.testing.assert_array_equal(again[0], mean)
    np.testing.assert_array_equal(again[1], logvar)


def test_validation_draws_do_not_depend_on_the_batch_size():
    moments = np.zeros((8, 2, 2, 8), np.float32)
    rng = jax.random.key(1)
    get = functools.partial(eval_draws, diffusion_model())
    whole = get({"latent_moments": moments}, rng, jnp.int32(0))
    second = get({"latent_moments": moments[4:]}, jax.random.clone(rng), jnp.int32(4))
    for name in ("noise", "posterior", "timesteps"):
        np.testing.assert_array_equal(getattr(whole, name)[4:], getattr(second, name))
    assert not np.any(whole.drop_caption)
    assert not np.any(np.asarray(whole.noise) == np.asarray(whole.posterior))


@pytest.mark.parametrize("count", [3, 16, 64, 1000])
def test_validation_timesteps_are_spread_evenly(count):
    draws = eval_draws(
        diffusion_model(),
        {"latent_moments": np.zeros((count, 1, 1, 8), np.float32)},
        jax.random.key(1),
        jnp.int32(0),
    )
    timesteps = np.sort(np.asarray(draws.timesteps)).astype(float)
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    # An even spread has gaps of T / count; the golden ratio's are at most 2.7 times as wide.
    gaps = np.diff(np.concatenate([[0], timesteps, [1000]]))
    assert gaps.max() <= 2.7 * 1000 / count + 2


def test_validation_loss_leaves_padding_out():
    """A batch of 4 with 2 rows of padding has the loss of its 2 real rows, in a batch of 2."""
    model = diffusion_model()
    eval_step = jit(make_eval_step(model, full((UNET,)), empty_prompt_ids=empty_prompt_ids()))
    params, batch = dict(tiny_model().params), make_batch(4)
    padded = {**batch, "mask": np.array([1, 1, 0, 0], np.float32)}
    short = {**{k: x[:2] for k, x in batch.items()}, "mask": np.ones(2, np.float32)}
    first = jnp.int32(8)
    total, count = eval_step({}, params, padded, jax.random.key(1), first)
    expected, _ = eval_step({}, params, short, jax.random.key(1), first)
    assert float(count) == 2
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    changed = {**padded, "images": padded["images"] // np.uint8([1, 1, 9, 9])[:, None, None, None]}
    assert float(eval_step({}, params, changed, jax.random.key(1), first)[0]) == float(total)


def test_prior_adds_lambda_times_its_own_mean():
    """Whatever the number of its rows; and the same with accumulation."""
    batch = make_batch(6, latents=True)
    rows = np.array([0, 0, 1, 1, 1, 1], np.float32)
    result = {}
    for weight, steps in ((0.0, 1), (0.5, 1), (2.0, 2)):
        settings = {"prior_weight": weight, "accumulation_steps": steps}
        step, state, frozen = make_run(patterns=(UNET,), **settings)
        marked = {**batch, "is_prior": rows}
        after, metrics = jit(step)(state, frozen, marked, jax.random.key(5))
        result[weight] = after.opt_state, {k: float(x) for k, x in metrics.items()}
    apart = result[0.5][1]
    whole = (2 * apart["data_loss"] + 4 * apart["prior_loss"]) / 6
    assert result[0.0][1]["loss"] == pytest.approx(whole, rel=1e-6)
    for weight in (0.5, 2.0):
        expected = apart["data_loss"] + weight * apart["prior_loss"]
        assert result[weight][1]["loss"] == pytest.approx(expected, rel=1e-6)
    # g = g_data + lambda g_prior; of all rows alike it is (2 g_data + 4 g_prior) / 6.
    for name, half in result[0.5][0].items():
        two = result[2.0][0][name]
        of_prior = (two - half) / 1.5
        mean = (2 * (half - 0.5 * of_prior) + 4 * of_prior) / 6
        of_whole = result[0.0][0][name]
        scale = np.abs(of_whole).max() + np.abs(two).max()
        np.testing.assert_allclose(mean, of_whole, rtol=0, atol=2e-5 * scale, err_msg=name)

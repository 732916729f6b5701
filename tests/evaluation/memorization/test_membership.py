"""Membership inference: a planted memoriser is found, an untrained model gives nothing away."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score, roc_curve

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.label_scores import auroc
from medsd_jax.evaluation.memorization.membership import (
    Examples,
    attack,
    make_denoising_losses,
    membership,
    times,
    tpr_at_one_percent,
)
from medsd_jax.evaluation.reports.membership import TruePositiveRate
from medsd_jax.models.params import abstract
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.training.state import init_state
from medsd_jax.training.step import make_train_step
from tests.tiny.networks import jit
from tests.tiny.pipeline import SIZE
from tests.tiny.training import (
    SETTINGS,
    UNET,
    diffusion_model,
    empty_prompt_ids,
    make_batch,
    tiny_model,
)

NUM = 8


def latents_of(seed: int) -> dict[str, np.ndarray]:
    """Eight images as moments of distinct latents of variance 1, with captions of their own."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal((NUM, SIZE // 2, SIZE // 2, 4)).astype(np.float32)
    mean /= diffusion_model().scaling_factor
    moments = np.concatenate([mean, np.full_like(mean, -20.0)], axis=-1)
    return {"latent_moments": moments, "prompt_ids": make_batch(NUM)["prompt_ids"]}


def side(seed: int) -> Examples:
    return Examples([latents_of(seed)], [f"patient {seed}.{i}" for i in range(NUM)])


@pytest.fixture(scope="module")
def memoriser():
    """Weights of the tiny model after 150 steps on the images of seed 0 and nothing else."""
    adaptation, tx = full((UNET,)), optax.adam(3e-3)
    step = make_train_step(
        diffusion_model(), adaptation, tx, empty_prompt_ids=empty_prompt_ids(), **SETTINGS
    )
    step = jit(step, donate_argnums=0)
    params = tiny_model().params
    trainable = adaptation.init(params, jax.random.key(0))
    frozen = frozen_params(params, trainable)
    state = jit(functools.partial(init_state, tx=tx, ema=False))(trainable)
    batch, rng = latents_of(0), jax.random.key(5)
    for _ in range(150):
        state, _ = step(state, frozen, batch, rng)
    return {**frozen, **state.trainable}


def test_memoriser_is_found(memoriser):
    observed = membership(diffusion_model(), memoriser, side(0), side(1), num_resamples=200)
    assert observed.auroc.value > 0.95 and observed.auroc.ci95[0] > 0.8
    assert observed.tpr_at_one_percent_fpr.value > 0.8
    strata = observed.timesteps
    assert [row.timestep for row in strata] == list(range(50, 1000, 100))
    # Where the noise hides the image, nothing can be remembered of it: the gap is in the others.
    gaps = [row.held_out_loss - row.trained_loss for row in strata]
    assert gaps[0] > 20 * abs(gaps[-1]) and strata[0].auroc == 1.0
    assert observed.trained.loss < observed.held_out.loss
    # With the sides changed over, what was found is the opposite.
    swapped = membership(diffusion_model(), memoriser, side(1), side(0), num_resamples=10)
    assert swapped.auroc.value == pytest.approx(1 - observed.auroc.value, abs=1e-12)


def test_untrained_model_gives_nothing_away():
    observed = membership(
        diffusion_model(), tiny_model().params, side(0), side(1), num_resamples=500
    )
    low, high = observed.auroc.ci95
    assert low < 0.5 < high
    assert observed.auroc.n == 2 * NUM


def test_losses_depend_on_the_image_and_its_place_alone():
    """Not on the batch size, padding or the devices; other seeds and places draw other noise."""
    whole, model, params = make_batch(5), diffusion_model(), tiny_model().params
    settings = {"num_timesteps": 3, "num_draws": 2}

    def losses(size, mesh=None, seed=0, order=range(5)):
        chosen = {k: x[np.array(order)] for k, x in whole.items()}
        rows = [np.arange(i, i + size).clip(max=4) for i in range(0, 5, size)]
        batches = [{k: x[r] for k, x in chosen.items()} for r in rows]
        observed = make_denoising_losses(model, params, seed=seed, mesh=mesh, **settings)(batches)
        assert observed.shape == (len(rows) * size, 3)
        return observed[:5]

    everywhere, one = losses(8), make_mesh({}, jax.devices()[:1])
    # Programs of other shapes round differently.
    np.testing.assert_allclose(losses(5, one), everywhere, rtol=2e-5)
    np.testing.assert_allclose(losses(2, make_mesh({"fsdp": 2}, jax.devices()[:2])), everywhere,
                               rtol=2e-5)  # fmt: skip
    assert np.abs(losses(5, one, seed=1) / everywhere - 1).min() > 1e-4
    moved = losses(5, one, order=[1, 0, 2, 3, 4])
    np.testing.assert_allclose(moved[2:], everywhere[2:], rtol=2e-5)
    assert np.abs(moved[:2] / everywhere[[1, 0]] - 1).min() > 1e-4


class Echo(nnx.Module):
    """A U-Net that answers with its input."""

    def __init__(self, rngs: nnx.Rngs):
        self.scale = nnx.Param(np.ones(1, np.float32))

    def __call__(self, latents, timesteps, context):
        return latents


def test_loss_is_that_of_the_posterior_mean_at_the_stated_times():
    """The mean of (sqrt(a) z + (sqrt(1 - a) - 1) n)^2 over n is a z^2 + (sqrt(1 - a) - 1)^2."""
    graphdef, params = abstract(Echo)
    model = dataclasses.replace(diffusion_model(), unet=graphdef)
    weights = {k: x for k, x in tiny_model().params.items() if not k.startswith("unet.")}
    weights |= {f"unet.{name}": np.ones(x.shape, x.dtype) for name, x in params.items()}
    batch = latents_of(3)
    batch["latent_moments"][..., 4:] = 3.0  # a posterior so wide that a draw from it would show
    losses_of = make_denoising_losses(model, weights, num_timesteps=4, num_draws=64, seed=0)
    losses = losses_of([batch])
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    a = np.cumprod(1 - betas)[[125, 375, 625, 875]]
    z = batch["latent_moments"][..., :4] * model.scaling_factor
    expected = a * np.square(z).mean(axis=(1, 2, 3))[:, None] + (np.sqrt(1 - a) - 1) ** 2
    assert times(model, 4).tolist() == [125, 375, 625, 875]
    # 64 draws of 256 numbers: n z has the standard error 0.8 %, n^2 1.1 %; five of them.
    np.testing.assert_allclose(losses, expected, rtol=0.05)


@pytest.mark.parametrize("ties", [False, True])
def test_scores_equal_scikit_learn(ties):
    rng = np.random.default_rng(0)
    trained, held_out = rng.normal(-0.5, 1, (150, 3)), rng.normal(0, 1, (230, 3))
    if ties:
        trained, held_out = trained.round(1), held_out.round(1)
    observed = attack(
        trained, held_out, [f"a{i // 3}" for i in range(150)], [f"b{i // 3}" for i in range(230)],
        timesteps=np.array([1, 2, 3]), num_resamples=300,
    )  # fmt: skip
    is_trained = np.repeat([True, False], [150, 230])
    score = -np.concatenate([trained, held_out]).mean(axis=1)
    value = observed.auroc.value
    assert value == pytest.approx(roc_auc_score(is_trained, score), abs=1e-12)
    low, high = observed.auroc.ci95
    assert low < value < high and observed.auroc.n == 50 + 77
    # 127 patients: about 0.03 on either side.
    assert 0.06 < high - low < 0.2
    fpr, tpr, _ = roc_curve(is_trained, score, drop_intermediate=False)
    assert observed.tpr_at_one_percent_fpr == TruePositiveRate(
        value=tpr[fpr <= 0.01].max(), false_alarms=2
    )
    for k, row in enumerate(observed.timesteps):
        losses = np.concatenate([trained[:, k], held_out[:, k]])
        assert row.auroc == pytest.approx(roc_auc_score(is_trained, -losses), abs=1e-12)
        assert row.trained_loss == pytest.approx(trained[:, k].mean(), rel=1e-12)
        assert row.held_out_loss == pytest.approx(held_out[:, k].mean(), rel=1e-12)


def test_interval_resamples_patients():
    """Ten copies of every image, of the same patient, are no more evidence than one."""
    rng = np.random.default_rng(0)
    trained, held_out = rng.normal(-0.5, 1, (30, 2)), rng.normal(0, 1, (30, 2))
    patients = [f"a{i}" for i in range(30)], [f"b{i}" for i in range(30)]
    settings = {"timesteps": np.array([1, 2]), "num_resamples": 300}
    one = attack(trained, held_out, *patients, **settings).auroc
    ten = attack(
        trained.repeat(10, 0), held_out.repeat(10, 0), *([p for p in side for _ in range(10)]
        for side in patients), **settings,
    ).auroc  # fmt: skip
    assert ten.ci95 == pytest.approx(one.ci95, abs=1e-9)


@pytest.mark.parametrize(("held_out", "images"), [(20, 1), (150, 1), (60, 3)])
def test_chance_is_as_large_as_it_says(held_out, images):
    """Nothing tells the sides apart, and "one false alarm in a hundred" finds 1 to 5 % of them."""
    trained = 100
    sides = [
        [f"{name}{i // images}" for i in range(n * images)]
        for name, n in (("a", trained), ("b", held_out))
    ]
    stated, observed, inside = [], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        losses = [
            np.repeat(rng.normal(size=(n, 1)), images, axis=0)
            + 0.5 * rng.normal(size=(n * images, 1))
            for n in (trained, held_out)
        ]
        result = attack(*losses, *sides, timesteps=np.array([1]), num_resamples=2)
        low, high = result.tpr_by_chance.ci95
        stated.append(result.tpr_by_chance.value)
        observed.append(result.tpr_at_one_percent_fpr.value)
        inside.append(low <= observed[-1] <= high)
    # The value spreads by its own size: 200 rounds know its mean to 7 %.
    assert np.mean(observed) == pytest.approx(np.mean(stated), rel=0.2)
    assert np.mean(inside) > 0.9
    if images == 1:
        assert np.mean(stated) == pytest.approx((held_out // 100 + 1) / (held_out + 1), rel=1e-9)


def test_one_side_alone_has_no_auroc():
    assert np.isnan(auroc(np.ones(3, bool), np.arange(3.0)))
    assert tpr_at_one_percent(np.array([True, False]), np.array([1.0, 1.0])) == 0.0


def test_losses_that_are_not_finite_are_reported():
    name = "unet.conv_out.bias"
    broken = np.full_like(tiny_model().params[name], np.nan)
    losses_of = make_denoising_losses(
        diffusion_model(),
        {**tiny_model().params, name: broken},
        num_timesteps=1,
        num_draws=1,
        seed=0,
    )
    with pytest.raises(UserError, match="losses of 8 of 8 images are not finite"):
        losses_of([latents_of(0)])


def test_mistakes_are_reported():
    losses, time = np.zeros((2, 1)), np.array([1])
    with pytest.raises(UserError, match=r"1 patient\(s\), such as 'b'"):
        attack(losses, losses, ["a", "b"], ["b", "c"], timesteps=time)
    with pytest.raises(UserError, match=r"2 images .* and 0 of other patients"):
        attack(losses, losses[:0], ["a", "b"], [], timesteps=time)
    with pytest.raises(UserError, match="0 timesteps and 4 draws"):
        membership(diffusion_model(), {}, side(0), side(1), num_timesteps=0)

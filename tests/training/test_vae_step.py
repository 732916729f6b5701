"""The VAE's loss: its perceptual term against torch and numpy, and what its gradient reaches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.arrays import from_uint8
from medsd_jax.interop.torch_layout import to_torch
from medsd_jax.models.params import abstract, bind, component, with_prefix
from medsd_jax.models.vae import AutoencoderKL, sample_posterior
from medsd_jax.training.accumulation import accumulated_grad
from medsd_jax.training.perceptual import perceptual_distance
from medsd_jax.training.state import apply_gradients, init_state
from medsd_jax.training.vae_step import draw_posterior_noise, make_vae_train_step
from medsd_jax.vision.densenet import DenseNet, DenseNetConfig
from tests.tiny.networks import jit, random_weights
from tests.tiny.training import make_batch, recorder, tiny_model

ALL, DECODER = r"^vae\.", r"^vae\.(decoder|post_quant_conv)\."
KL = 1e-2
NETWORK = DenseNetConfig(4, (1, 2), 8, in_channels=3, norm="batch")


@functools.cache
def network():
    """Structure and weights of a frozen network with batch norm, whose variances are positive."""
    graphdef, weights = random_weights(functools.partial(DenseNet, NETWORK), 5)
    weights = {
        k: np.array(jnp.abs(x) + 0.5 if k.endswith(".var") else x) for k, x in weights.items()
    }
    return graphdef, weights


def maps(weights, images):
    return bind(network()[0], weights).feature_maps(images)


@functools.cache
def graphdef():
    return abstract(functools.partial(AutoencoderKL, tiny_model().vae))[0]


def prepared(pattern, weight, accumulation_steps=1):
    """The step and its arguments."""
    model, adaptation, tx = tiny_model(), full((pattern,)), recorder()
    params = {**model.params, **with_prefix(network()[1], "perceptual")}
    step = make_vae_train_step(
        graphdef(),
        adaptation,
        tx,
        latent_channels=model.vae.latent_channels,
        downscale=model.vae.downscale,
        kl_weight=KL,
        accumulation_steps=accumulation_steps,
        ema_decay=0.0,
        features=maps if weight else None,
        perceptual_weight=weight,
    )
    trainable = adaptation.init(params, jax.random.key(0))
    state = init_state(trainable, tx, ema=False)
    batch = {"images": make_batch(2)["images"]}
    return step, (state, frozen_params(params, trainable), batch, jax.random.key(4))


def gradients(pattern, weight, accumulation_steps=1):
    """One step that records its gradient: (metrics, gradient by name)."""
    step, arguments = prepared(pattern, weight, accumulation_steps)
    after, metrics = jit(step)(*arguments)
    return {k: float(x) for k, x in metrics.items()}, jax.device_get(after.opt_state)


def test_without_the_term_the_program_is_as_before():
    """The step as it was before there was a term, written out here: the same, letter for letter."""
    model, adaptation, tx = tiny_model(), full((ALL,)), recorder()

    def train_step(state, frozen, batch, rng):
        images = batch["images"]
        noise = draw_posterior_noise(
            images.shape, state.step, rng, latent_channels=model.vae.latent_channels,
            downscale=model.vae.downscale,
        )  # fmt: skip

        def loss_fn(trainable, micro_batch):
            images, noise = from_uint8(micro_batch[0]), micro_batch[1]
            params = adaptation.apply(frozen, trainable)
            module = bind(graphdef(), component(params, "vae"))
            mean, logvar = module.encode(images)
            latents = sample_posterior(mean, logvar, noise)
            l1 = jnp.mean(jnp.abs(module.decode(latents) - images), axis=(1, 2, 3))
            kl = 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))
            kl = kl / (images.shape[1] * images.shape[2] * images.shape[3])
            return jnp.mean(l1 + KL * kl), {"l1": jnp.mean(l1), "kl": jnp.mean(kl)}

        scalars, grads = accumulated_grad(loss_fn, state.trainable, (images, noise), 1)
        state, norms = apply_gradients(state, grads, tx, ema_decay=0.0)
        return state, {**scalars, **norms}

    step, arguments = prepared(ALL, 0.0)
    programs = [jax.jit(f).lower(*arguments).as_text() for f in (step, train_step)]
    assert programs[0] == programs[1]
    other, arguments = prepared(ALL, 0.5)
    assert jax.jit(other).lower(*arguments).as_text() != programs[0]


def test_the_term_is_added_and_accumulates():
    none, _ = gradients(DECODER, 0.0)
    one, grads_one = gradients(DECODER, 0.5)
    halves, grads_halves = gradients(DECODER, 0.5, accumulation_steps=2)
    assert 0.01 < one["perceptual"] <= 4
    assert one["loss"] == pytest.approx(none["loss"] + 0.5 * one["perceptual"], rel=1e-6)
    assert halves["loss"] == pytest.approx(one["loss"], rel=1e-6)
    for name, grad in grads_one.items():
        # The gradient of a key bias is 0 but for rounding: see test_step_parity.py.
        scale = np.abs(grads_one[name.replace("to_k", "to_q")]).max()
        np.testing.assert_allclose(grads_halves[name], grad, rtol=0, atol=2e-5 * scale)


def test_its_gradient_reaches_the_decoder_alone():
    _, without = gradients(DECODER, 0.0)
    _, result = gradients(DECODER, 1.0)
    assert result.keys() == {
        n for n in tiny_model().params if n.startswith(("vae.decoder.", "vae.post_"))
    }
    for name, grad in result.items():
        if not name.endswith("to_k.bias"):
            assert np.abs(grad - without[name]).max() > 1e-3 * np.abs(grad).max(), name
    # With the whole VAE trained it reaches the encoder as well, and the network never.
    _, everything = gradients(ALL, 1.0)
    assert any(name.startswith("vae.encoder.") for name in everything)
    assert not any(name.startswith("perceptual.") for name in everything)


def test_distance_equals_numpy():
    """Two layers of a network that is written out: channels' sums and differences, each scaled."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 3, 6, 6, 3)).astype(np.float32)
    scales = rng.normal(size=(2, 3, 5)).astype(np.float32)

    def features(weights, images):
        return [images @ weights["first"], jnp.maximum(images[:, ::2, ::2] @ weights["second"], 0)]

    weights = {"first": scales[0], "second": scales[1]}
    result = jax.jit(functools.partial(perceptual_distance, features))(weights, x, y)
    expected = np.zeros(3)
    for layer, (stride, scale) in enumerate(((1, scales[0]), (2, scales[1]))):
        for b in range(3):
            far = []
            for i in range(0, 6, stride):
                for j in range(0, 6, stride):
                    u, v = (p[b, i, j].astype(np.float64) @ scale for p in (x, y))
                    if layer == 1:
                        u, v = np.maximum(u, 0), np.maximum(v, 0)
                    u, v = (p / max(np.linalg.norm(p), 1e-30) for p in (u, v))
                    far.append(np.sum((u - v) ** 2))
            expected[b] += np.mean(far) / 2
    # The epsilon of 1e-10 beside squared norms of about 1.
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_equal_images_and_dead_maps_have_no_distance_and_a_finite_gradient():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    same = lambda weights, images: [images]  # noqa: E731
    dead = lambda weights, images: [jnp.maximum(images - 9.0, 0.0)]  # noqa: E731
    for features in (same, dead):
        distance = lambda y, f=features: jnp.sum(perceptual_distance(f, {}, x, y))  # noqa: E731
        value, grad = jax.value_and_grad(distance)(jnp.asarray(x))
        assert float(value) == 0.0 and np.isfinite(grad).all()
    opposite = perceptual_distance(same, {}, x, -x)
    np.testing.assert_allclose(opposite, 4.0, rtol=1e-6)  # the most there is


@pytest.mark.torch
def test_loss_and_gradients_equal_torch_autograd():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from tests.models import oracles
    from tests.training import torch_reference
    from tests.vision import torch_densenet

    model, images = tiny_model(), make_batch(2)["images"]
    noise = draw_posterior_noise(
        images.shape, 0, jax.random.key(4), latent_channels=model.vae.latent_channels,
        downscale=model.vae.downscale,
    )  # fmt: skip
    module = torch_reference.torch_modules(model)["vae"]
    weights = {k: torch.tensor(np.array(x)) for k, x in to_torch(network()[1]).items()}
    x = torch_reference.on_its_range(images)
    posterior = module.encode(x).latent_dist
    y = module.decode(
        posterior.mean + posterior.std * torch_reference.nchw(np.asarray(noise))
    ).sample
    pair = [torch_densenet.feature_maps(weights, NETWORK.block_config, p) for p in (x, y)]
    units = [[torch.nn.functional.normalize(m, dim=1) for m in side] for side in pair]
    distance = sum(((a - b) ** 2).sum(1).mean() for a, b in zip(*units, strict=True)) / 3
    loss = torch.abs(y - x).mean() + KL * posterior.kl().sum() / x.numel() + 0.7 * distance
    loss.backward()

    metrics, result = gradients(ALL, 0.7)
    assert metrics["perceptual"] == pytest.approx(distance.item(), rel=1e-5)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    theirs = torch_reference.gradients({"vae": module}, ("vae",))
    ours = torch_reference.ours_in_torch(result, ("vae",))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if not name.endswith("to_k.bias"):  # no gradient but rounding: see test_step_parity.py
            assert oracles.error(ours[name], theirs[name]) <= 1e-4, name  # as there

"""One train step against torch autograd: the same weights, batch and random numbers."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from medsd_jax.adaptation.full import full
from medsd_jax.training.state import init_state
from medsd_jax.training.step import draw
from medsd_jax.training.vae_step import draw_posterior_noise
from medsd_jax.workflows.train.vae import make_vae_steps
from tests.models import oracles
from tests.tiny.networks import jit
from tests.tiny.training import (
    TEXT,
    UNET,
    diffusion_model,
    empty_prompt_ids,
    make_batch,
    make_run,
    recorder,
    tiny_model,
)
from tests.training import torch_reference

pytestmark = pytest.mark.torch

LOSS_TOLERANCE = 1e-5  # relative; measured: 2e-7
GRADIENT_TOLERANCE = 1e-4  # of the gradient's largest value; measured: 5e-6


KEY_BIASES = ("self_attn.k_proj.bias", "to_k.bias")
"""A key bias shifts all scores of a query alike and softmax takes shifts away: no gradient."""


def worst_error(ours: dict, theirs: dict) -> tuple[float, str]:
    assert ours.keys() == theirs.keys()
    errors = {}
    for name in ours:
        if name.endswith(KEY_BIASES):
            # What is left is rounding, which is judged by the gradient of the query bias.
            query = name.replace("k_proj", "q_proj").replace("to_k", "to_q")
            errors[name] = np.abs(ours[name]).max() / np.abs(theirs[query]).max()
        else:
            errors[name] = oracles.error(ours[name], theirs[name])
    worst = max(errors, key=errors.get)
    return errors[worst], worst


U, UT = ("unet",), ("unet", "text_encoder")
slow = pytest.mark.slow  # each case compiles for seconds; the others show every pair of choices


@pytest.mark.parametrize(
    ("prediction_type", "parts", "gamma", "latents"),
    [
        pytest.param("epsilon", U, None, False, id="epsilon-unet"),
        pytest.param("epsilon", UT, 1.0, True, id="epsilon-both-min_snr"),
        pytest.param("v_prediction", U, 1.0, True, id="v-unet-min_snr"),
        pytest.param("v_prediction", UT, None, True, id="v-both"),
        pytest.param("epsilon", U, 1.0, False, id="epsilon-unet-min_snr", marks=slow),
        pytest.param("epsilon", UT, None, False, id="epsilon-both", marks=slow),
        pytest.param("v_prediction", U, None, False, id="v-unet", marks=slow),
        pytest.param("v_prediction", UT, 1.0, False, id="v-both-min_snr", marks=slow),
    ],
)
def test_loss_and_every_gradient(prediction_type, parts, gamma, latents):
    model = tiny_model(prediction_type)
    batch, rng = make_batch(4, latents=latents), jax.random.key(3)
    step, state, frozen = make_run(
        prediction_type,
        patterns=(UNET, TEXT)[: len(parts)],
        caption_dropout=0.5,
        min_snr_gamma=gamma,
    )
    after, metrics = jit(step)(state, frozen, batch, rng)

    draws = draw(
        diffusion_model(prediction_type),
        batch,
        jax.random.fold_in(rng, 0),
        caption_dropout=0.5,
    )
    assert 0 < np.sum(draws.drop_caption) < 4  # both kinds of caption are in the batch
    if gamma is not None:  # times with and without a weight below 1
        snr = np.asarray(diffusion_model(prediction_type).schedule.snr(draws.timesteps))
        assert snr.min() < gamma < snr.max()
    modules = torch_reference.torch_modules(model)
    loss = torch_reference.diffusion_loss(
        modules, model, batch, draws, empty=empty_prompt_ids(), gamma=gamma
    )
    loss.backward()

    loss_error = abs(float(metrics["loss"]) / loss.item() - 1)
    theirs = torch_reference.gradients(modules, parts)
    error, name = worst_error(torch_reference.ours_in_torch(after.opt_state, parts), theirs)
    print(f"loss {loss.item():.4f}: error {loss_error:.1e}; worst gradient {name}: {error:.1e}")
    assert loss_error <= LOSS_TOLERANCE
    assert error <= GRADIENT_TOLERANCE, name
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in theirs.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_vae_loss_and_every_gradient():
    import ml_collections

    model, tx = tiny_model(), recorder()
    config = ml_collections.ConfigDict(
        {
            "model": {"dtype": "float32"},
            "vae": {
                "kl_weight": 1e-2,
                "perceptual_weight": 0.0,
            },  # large, so that the KL's gradient is seen
            "train": {"accumulation_steps": 1, "ema_decay": 0.0},
        }
    )
    step, _ = make_vae_steps(config, model, full((r"^vae\.",)), tx, None)
    state = init_state(full((r"^vae\.",)).init(model.params, None), tx, ema=False)
    images, rng = make_batch(2)["images"], jax.random.key(4)
    after, metrics = jit(step)(state, {}, {"images": images}, rng)

    noise = draw_posterior_noise(
        images.shape, 0, rng, latent_channels=model.vae.latent_channels, downscale=2
    )
    module = torch_reference.torch_modules(model)["vae"]
    loss, l1, kl = torch_reference.vae_loss(module, images, noise, kl_weight=1e-2)
    loss.backward()
    assert kl.item() > 0.01 and metrics.keys() == {"loss", "l1", "kl", "grad_norm", "update_norm"}
    for name, theirs in {"loss": loss, "l1": l1, "kl": kl}.items():
        np.testing.assert_allclose(metrics[name], theirs.item(), rtol=LOSS_TOLERANCE)
    error, name = worst_error(
        torch_reference.ours_in_torch(after.opt_state, ("vae",)),
        torch_reference.gradients({"vae": module}, ("vae",)),
    )
    print(f"worst gradient {name}: {error:.1e}")
    assert error <= GRADIENT_TOLERANCE, name

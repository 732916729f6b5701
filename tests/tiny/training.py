"""A tiny diffusion training: model, batch and step functions, shared by the tests here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.params import with_prefix
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.training.state import init_state
from medsd_jax.training.step import make_train_step
from medsd_jax.workflows.train.steps import make_diffusion_model
from tests.tiny.networks import jit, random_weights
from tests.tiny.pipeline import SIZE, tiny_pipeline

UNET, TEXT = r"^unet\.", r"^text_encoder\."
SETTINGS = {
    "caption_dropout": 0.0,
    "min_snr_gamma": None,
    "accumulation_steps": 1,
    "ema_decay": 0.999,
}


@functools.cache
def tiny_model(prediction_type: str = "epsilon") -> StableDiffusion:
    """One transformer and few blocks: compiling gradients is what these tests wait for."""
    model = tiny_pipeline(prediction_type)
    unet = dataclasses.replace(
        model.unet,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    text_encoder = dataclasses.replace(model.text_encoder, num_hidden_layers=1)
    modules = {
        "unet": functools.partial(UNet2DConditionModel, unet),
        "vae": functools.partial(AutoencoderKL, model.vae),
        "text_encoder": functools.partial(CLIPTextModel, text_encoder),
    }
    params = {}
    for seed, (name, make) in enumerate(modules.items()):
        weights = random_weights(make, seed)[1]
        params |= with_prefix({k: np.asarray(x) for k, x in weights.items()}, name)
    return dataclasses.replace(model, unet=unet, text_encoder=text_encoder, params=params)


@functools.cache
def empty_prompt_ids() -> np.ndarray:
    return encode_prompts(tiny_model().tokenizer, [""])[0]


@functools.cache
def diffusion_model(prediction_type: str = "epsilon"):
    model = tiny_model(prediction_type)
    return make_diffusion_model(model, dtype="float32", attention="xla", remat=False)


def make_batch(size: int, seed: int = 0, *, latents: bool = False) -> dict[str, np.ndarray]:
    """Images with captions; with `latents` their posteriors' moments in the place of images."""
    rng = np.random.default_rng(seed)
    texts = [f"lung {i}" for i in range(size)]
    prompt_ids = encode_prompts(tiny_model().tokenizer, texts)
    if latents:
        moments = rng.standard_normal((size, SIZE // 2, SIZE // 2, 8), np.float32)
        return {"latent_moments": moments, "prompt_ids": prompt_ids}
    images = rng.integers(0, 256, (size, SIZE, SIZE, 3), np.uint8)
    return {"images": images, "prompt_ids": prompt_ids}


def recorder() -> optax.GradientTransformation:
    """An optimizer that changes nothing and keeps the gradient as its state."""
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return optax.GradientTransformation(zeros, lambda grads, state, params: (zeros(grads), grads))


def make_run(prediction_type="epsilon", patterns=(UNET,), tx=None, ema=True, **settings):
    """Returns (train_step, initial state, frozen weights); nothing is jitted or placed."""
    model = tiny_model(prediction_type)
    adaptation, tx = full(patterns), tx or recorder()
    step = make_train_step(
        diffusion_model(prediction_type),
        adaptation,
        tx,
        empty_prompt_ids=empty_prompt_ids(),
        **{**SETTINGS, **settings},
    )
    trainable = adaptation.init(model.params, jax.random.key(0))
    state = jit(functools.partial(init_state, tx=tx, ema=ema))(trainable)
    return step, state, frozen_params(model.params, trainable)

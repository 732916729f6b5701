"""A whole Stable Diffusion of random weights, small enough to sample from in a test."""

import dataclasses
import functools
import importlib.util

import numpy as np
import pytest
from transformers import CLIPTokenizer

from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from medsd_jax.models.params import with_prefix
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from tests.tiny.networks import random_weights

SIZE = 16
"""Pixels of an image along one side; latents are half of it."""
LENGTH = 16

_UNET = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 32),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=32,
    norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
_VAE = VAEConfig(
    sample_size=SIZE,
    block_out_channels=(32, 32),
    norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
_CLIP = CLIPTextConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
)
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@functools.cache
def tiny_pipeline(prediction_type: str = "epsilon") -> StableDiffusion:
    """The model; "v_prediction" comes with SD 2's differences, everything else with SD 1's."""
    second = prediction_type == "v_prediction"
    unet = dataclasses.replace(_UNET, use_linear_projection=second)
    text = dataclasses.replace(_CLIP, hidden_act="gelu" if second else "quick_gelu")
    modules = {
        "unet": functools.partial(UNet2DConditionModel, unet),
        "vae": functools.partial(AutoencoderKL, _VAE),
        "text_encoder": functools.partial(CLIPTextModel, text),
    }
    params = {}
    for seed, (name, make) in enumerate(modules.items()):
        weights = random_weights(make, seed + 10 * second)[1]
        params |= with_prefix({k: np.asarray(x) for k, x in weights.items()}, name)
    scheduler = {**_SCHEDULER, "prediction_type": prediction_type}
    return StableDiffusion(unet, _VAE, text, scheduler, _tokenizer(), params)


def _tokenizer() -> CLIPTokenizer:
    """CLIP's, with one token a byte: it reads any prompt."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    # The two special tokens take the place of rare bytes so that 512 ids are enough.
    words = [word for word in words if word not in ("ÿ", "ÿ</w>")]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=LENGTH)


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """For the test modules that import it, which compare with torch.

    Two threads that wait for each other over tiny arrays take seconds on a busy machine.
    """
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

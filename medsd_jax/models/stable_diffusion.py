"""The bundle that a diffusers folder holds: configs, weights, tokenizer, scheduler settings."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from medsd_jax.arrays import Params
from medsd_jax.models.config import UNetConfig, VAEConfig
from medsd_jax.models.text_encoder import TextEncoderConfig


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """Everything that is needed to sample from, fine-tune or write out one model.

    Attributes:
        unet: shape of the U-Net.
        vae: shape of the autoencoder and its scaling factor.
        text_encoder: shape of the CLIP or BERT text encoder, a projection included.
        scheduler: scheduler_config.json as it was read, every key kept for the way back.
        tokenizer: a transformers tokenizer; its `model_max_length` is S.
        params: weights of all three, names prefixed "unet.", "vae.", "text_encoder."; kernels
            [kH, kW, I, O] or [I, O]; numpy arrays after loading, jax arrays once placed.
    """

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: TextEncoderConfig
    scheduler: Mapping[str, Any]
    tokenizer: Any
    params: Params

    def fingerprint(self) -> str:
        """16 hex digits that change with any bit of any weight; written beside samples."""
        return weights_fingerprint(self.params)


def weights_fingerprint(params: Params) -> str:
    """16 hex digits that change with any name, shape or bit of these weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(params):
        array = np.ascontiguousarray(params[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()

"""Another text encoder in a model: a BERT in the place of CLIP, and what makes the widths fit."""

import copy
import dataclasses
from typing import Any

import numpy as np

from medsd_jax.arrays import Params
from medsd_jax.errors import UserError
from medsd_jax.models.bert_config import BertTextConfig, TextProjectionConfig
from medsd_jax.models.params import component, with_prefix
from medsd_jax.models.scratch import random_params, random_unet
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.text_encoder import PROJECTION, text_encoder_module

PROJECTIONS = ("none", "linear", "mlp")


def swap_text_encoder(
    model: StableDiffusion,
    encoder: BertTextConfig,
    tokenizer: Any,
    params: Params,
    *,
    projection: str = "none",
    hidden_features: int | None = None,
    fresh_unet: bool = False,
    max_length: int = 77,
    seed: int = 0,
) -> StableDiffusion:
    """The model with a BERT in the place of its text encoder. Nothing is trained.

    Args:
        model: gives VAE, scheduler and, unless `fresh_unet`, the U-Net.
        encoder: shape of the BERT, without a projection.
        tokenizer: its tokenizer, which stays as it is; the model's has the length `max_length`.
        params: its weights, by their names in BertModel.
        projection: "none"; "linear" or "mlp" (one hidden layer) put random weights between the
            encoder and the U-Net, to the width that the U-Net has.
        hidden_features: width of the "mlp"'s hidden layer; None: the encoder's own.
        fresh_unet: a U-Net of random weights that attends to the encoder's width.
        max_length: S, tokens of a prompt with its two special ones.
        seed: of random weights.

    Raises:
        UserError: the widths do not fit, or two of the choices contradict each other.
    """
    assert projection in PROJECTIONS and encoder.projection is None, (projection, encoder)
    width, needed = encoder.hidden_size, model.unet.cross_attention_dim
    if not 3 <= max_length <= encoder.max_position_embeddings:
        raise UserError(
            f"max_length = {max_length} must lie between 3 and the "
            f"{encoder.max_position_embeddings} positions that the encoder knows"
        )
    if fresh_unet and projection != "none":
        raise UserError(
            f"a fresh U-Net attends to the encoder's own width: projection = {projection!r} has "
            "no place beside it; take one of the two"
        )
    if projection == "none" and not fresh_unet and width != needed:
        raise UserError(
            f"the encoder is {width} wide, the U-Net attends to {needed}: put a projection between "
            "them (linear or mlp), or train a fresh U-Net"
        )
    if hidden_features is not None and projection != "mlp":
        raise UserError(f"a hidden layer of {hidden_features} needs projection = 'mlp'")
    rng_unet, rng_projection = np.random.default_rng(seed).spawn(2)
    swapped = {k: x for k, x in model.params.items() if not k.startswith("text_encoder.")}
    unet, text = model.unet, dict(params)
    if fresh_unet:
        unet = dataclasses.replace(unet, cross_attention_dim=width)
        swapped |= with_prefix(random_unet(unet, rng_unet), "unet")
    if projection != "none":
        hidden = (hidden_features or width) if projection == "mlp" else None
        shape = TextProjectionConfig(in_features=width, hidden_features=hidden, out_features=needed)
        encoder = dataclasses.replace(encoder, projection=shape)
        drawn = random_params(text_encoder_module(encoder), rng_projection, only=f"{PROJECTION}.")
        text |= with_prefix(component(drawn, PROJECTION), PROJECTION)
    tokenizer = copy.copy(tokenizer)  # the caller's keeps its length
    tokenizer.model_max_length = max_length
    return dataclasses.replace(
        model,
        unet=unet,
        text_encoder=encoder,
        tokenizer=tokenizer,
        params=swapped | with_prefix(text, "text_encoder"),
    )

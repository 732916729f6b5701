"""CLIP's image tower (arXiv 2103.00020), names as in the published checkpoints.

    (1)  x = pre_layrnorm([class; W patches] + positions)
    (2)  x = x + attention(norm(x)),  x = x + mlp(norm(x))            in every layer, without a mask
    (3)  features = V post_layernorm(x[class])

(3) is the embedding that CLIP compares with a text, before its length is made one: the space of
CLIP-FID, 512 wide in ViT-B/32.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medsd_jax.errors import UserError
from medsd_jax.models.attention import AttentionFn, auto_attention
from medsd_jax.models.clip import CLIPEncoder
from medsd_jax.models.config import (
    CLIP_ACTIVATIONS,
    TRANSFORMERS_NOTES,
    JsonConfig,
    check_transformer,
)
from medsd_jax.models.layers import LayerNorm
from medsd_jax.vision.layers import conv, require_image

# Of language models, whose keys transformers 4 wrote into every config.
_TEXT_GENERATION = frozenset(
    "add_cross_attention bos_token_id chunk_size_feed_forward eos_token_id is_decoder "
    "is_encoder_decoder pad_token_id".split()
)
# What only training reads.
_TRAINING = frozenset(
    "attention_dropout dropout initializer_factor initializer_range logit_scale_init_value".split()
)
_NOTES = TRANSFORMERS_NOTES | _TEXT_GENERATION | _TRAINING


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(JsonConfig):
    """Shapes of CLIPVisionModelWithProjection. Names and defaults are transformers' own.

    The defaults count: transformers leaves out of a CLIPModel's vision_config what equals them.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    _CLASS_NAME = "CLIPVisionModelWithProjection"
    _NOTES = _NOTES
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "architectures": (None, ("CLIPVisionModelWithProjection",)),
        "model_type": ("clip_vision_model",),
        "num_channels": (3,),
        "pruned_heads": ({},),
    }

    @property
    def grid(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size

    def _check(self, where: str) -> None:
        check_transformer(self, where, CLIP_ACTIVATIONS)
        if self.grid < 1:
            raise UserError(
                f"{where}: patch_size = {self.patch_size} is above image_size = {self.image_size}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BothTowers(JsonConfig):
    """config.json of a CLIPModel, of which the image tower is read."""

    vision_config: dict | None = None
    vision_config_dict: dict | None = None
    projection_dim: int = 512

    _CLASS_NAME = "CLIPModel"
    _NOTES = _NOTES | {"text_config", "text_config_dict"}
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "architectures": (None, ("CLIPModel",)),
        "model_type": ("clip",),
        "pruned_heads": ({},),
    }


def read_config(values: Mapping[str, Any], where: str) -> CLIPVisionConfig:
    """The image tower's shape.

    Args:
        values: config.json of a CLIPModel or of a CLIPVisionModelWithProjection.
        where: the file's name, for errors.

    Raises:
        UserError: a key or a value that is not implemented, or another model.
    """
    if values.get("model_type") != "clip":
        return CLIPVisionConfig.from_dict(values, where)
    both = _BothTowers.from_dict(values, where)
    # Where both are there transformers takes all of vision_config_dict, its defaults too.
    vision = both.vision_config if both.vision_config_dict is None else both.vision_config_dict
    config = CLIPVisionConfig.from_dict(vision or {}, f"{where}, vision_config")
    # vision_config may hold a projection_dim too, which a CLIPModel does not read.
    return dataclasses.replace(config, projection_dim=both.projection_dim)


_TEXT_TOWER = ("text_model.", "text_projection.", "logit_scale")
_BARE = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")


def modernize(
    state_dict: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Gives the weights their published names and leaves out what the image tower does not hold.

    Args:
        state_dict: torch names as they stand in the file -> arrays. Without the prefix
            vision_model., which transformers 5 drops from a tower that is saved alone, too.

    Returns:
        The same arrays by their published names, and how many of each kind were left out.
    """
    kept: dict[str, np.ndarray] = {}
    left_out = {"of the text tower": 0, "position_ids": 0}
    for name, x in state_dict.items():
        if name.startswith(_TEXT_TOWER):
            left_out["of the text tower"] += 1
        elif name.endswith("embeddings.position_ids"):  # a constant, of files before 2023
            left_out["position_ids"] += 1
        else:
            kept[f"vision_model.{name}" if name.startswith(_BARE) else name] = x
    return kept, {kind: count for kind, count in left_out.items() if count}


class CLIPVisionEmbeddings(nnx.Module):
    """(1) before its norm: patches, the class token before them, and positions."""

    def __init__(self, config: CLIPVisionConfig, *, rngs):
        d, self.positions = config.hidden_size, config.grid**2 + 1
        self.class_embedding = nnx.Param(jnp.zeros(d, jnp.float32))
        self.patch_embedding = conv(3, d, config.patch_size, stride=config.patch_size, rngs=rngs)
        self.position_embedding = nnx.Embed(self.positions, d, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B L D"]:
        """Images [B, H, W, 3] -> tokens [B, 1 + patches, D]."""
        patches = self.patch_embedding(images)
        b, h, w, d = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...], (b, 1, d))
        tokens = jnp.concatenate([first, patches.reshape(b, h * w, d)], axis=1)
        return tokens + self.position_embedding(jnp.arange(self.positions))[None]


class CLIPVisionTransformer(nnx.Module):
    """(1), (2) and the norm of (3)."""

    def __init__(self, config: CLIPVisionConfig, *, attend: AttentionFn, rngs):
        norm = {"epsilon": config.layer_norm_eps, "dtype": jnp.float32, "rngs": rngs}
        self.embeddings = CLIPVisionEmbeddings(config, rngs=rngs)
        self.pre_layrnorm = LayerNorm(config.hidden_size, **norm)  # spelt so in every checkpoint
        self.encoder = CLIPEncoder(
            config, is_causal=False, attend=attend, dtype=jnp.float32, rngs=rngs
        )
        self.post_layernorm = LayerNorm(config.hidden_size, **norm)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Images [B, H, W, 3] -> the normalised class token [B, D]."""
        x = self.encoder(self.pre_layrnorm(self.embeddings(images)))
        return self.post_layernorm(x[:, 0])


class CLIPVisionModelWithProjection(nnx.Module):
    """Images to the space that they share with texts."""

    def __init__(self, config: CLIPVisionConfig, *, attend: AttentionFn = auto_attention, rngs):
        self.config = config
        self.vision_model = CLIPVisionTransformer(config, attend=attend, rngs=rngs)
        self.visual_projection = nnx.Linear(
            config.hidden_size, config.projection_dim, use_bias=False, rngs=rngs
        )

    def pooled_features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """The projected image embedding, transformers' image_embeds.

        Args:
            images: [B, S, S, 3], S the config's image_size, normalised as the checkpoint's
                preprocessor_config.json says.

        Returns:
            [B, projection_dim] float32, not of length one.
        """
        require_image(images, 3, self.config.patch_size)
        _, height, width, _ = images.shape
        size = self.config.image_size
        if (height, width) != (size, size):
            raise UserError(
                f"images of {height}x{width}: this CLIP was trained on {size}x{size}; take "
                "config.json and preprocessor_config.json from the same model"
            )
        with jax.default_matmul_precision("highest"):  # of the shared layers too
            return self.visual_projection(self.vision_model(images))

"""DINOv2's vision transformer (arXiv 2304.07193), names as in the published checkpoints.

    (1)  x = [class; W patches + b] + positions
    (2)  x = x + lambda_1 attention(norm(x)),  x = x + lambda_2 mlp(norm(x))      in every layer
    (3)  features = norm(x)[class]

RAD-DINO (arXiv 2401.10815) is DINOv2-base trained further on chest X-rays of 518 px. (3) is
transformers' pooler_output, the space of CheXGenBench's headline FID. (CheXGenBench shrinks every
image to 299 x 299 before the network's own input chain; its numbers compare with those of
images of that size.)
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medsd_jax.errors import UserError
from medsd_jax.models.attention import AttentionFn, auto_attention
from medsd_jax.models.clip import CLIPMLP
from medsd_jax.models.config import TRANSFORMERS_NOTES, JsonConfig, check_transformer
from medsd_jax.models.layers import LayerNorm
from medsd_jax.vision.layers import require_image
from medsd_jax.vision.positions import interpolate_positions

_Tokens = Float[Array, "B L D"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dinov2Config(JsonConfig):
    """Shapes of Dinov2Model. Names and defaults are transformers' own.

    Attributes:
        image_size: pixels of the images that the positions were trained on.
        qkv_bias: whether queries, keys and values have biases.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    qkv_bias: bool = True

    _CLASS_NAME = "Dinov2Model"
    # The first line is read in training only, the second by a Dinov2Backbone only.
    _NOTES = TRANSFORMERS_NOTES | set(
        "attention_probs_dropout_prob drop_path_rate hidden_dropout_prob initializer_range "
        "layerscale_value use_mask_token "
        "apply_layernorm out_features out_indices reshape_hidden_states stage_names".split()
    )
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "architectures": (None, ("Dinov2Model",)),
        "model_type": ("dinov2",),
        "num_channels": (3,),
        "use_swiglu_ffn": (False,),
    }

    @property
    def intermediate_size(self) -> int:
        """Width inside the MLP."""
        return self.hidden_size * self.mlp_ratio

    @property
    def grid(self) -> int:
        """Patches along one side of an image of the trained size."""
        return self.image_size // self.patch_size

    def _check(self, where: str) -> None:
        check_transformer(self, where, ("gelu",))
        if self.grid < 1:
            raise UserError(
                f"{where}: patch_size = {self.patch_size} is above image_size = {self.image_size}"
            )


def read_config(values: Mapping[str, Any], where: str) -> Dinov2Config:
    """The shape that a Dinov2Model's config.json states.

    Raises:
        UserError: a key or a value that is not implemented, or another model.
    """
    return Dinov2Config.from_dict(values, where)


_NEW_ATTENTION = re.compile(r"(.*\.attention)\.(q|k|v|o)_proj\.(weight|bias)")
_PUBLISHED_ATTENTION = {
    "q": "attention.query",
    "k": "attention.key",
    "v": "attention.value",
    "o": "output.dense",
}


def modernize(
    state_dict: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Gives the weights their published names and leaves out what only training reads.

    Args:
        state_dict: torch names as they stand in the file -> arrays. transformers 5 calls the
            attention's layers q_proj, k_proj, v_proj and o_proj in memory, and writes the published
            names; a state dict that was saved by hand has the former.

    Returns:
        The same arrays by their published names, and how many of each kind were left out.
    """
    kept: dict[str, np.ndarray] = {}
    left_out = {}
    for name, x in state_dict.items():
        if name == "embeddings.mask_token":
            left_out["mask_token"] = 1
            continue
        if match := _NEW_ATTENTION.fullmatch(name):
            name = f"{match[1]}.{_PUBLISHED_ATTENTION[match[2]]}.{match[3]}"
        kept[name] = x
    return kept, left_out


class _Projection(nnx.Module):
    """The convolution that embeds patches, under the name that it has in the checkpoints."""

    def __init__(self, config: Dinov2Config, *, rngs):
        kernel = (config.patch_size, config.patch_size)
        self.projection = nnx.Conv(
            3, config.hidden_size, kernel, strides=kernel, padding="VALID", rngs=rngs
        )


class Dinov2Embeddings(nnx.Module):
    """(1): patches, the class token before them, and positions."""

    def __init__(self, config: Dinov2Config, *, rngs):
        d, self.grid = config.hidden_size, config.grid
        self.cls_token = nnx.Param(jnp.zeros((1, 1, d), jnp.float32))
        self.position_embeddings = nnx.Param(jnp.zeros((1, self.grid**2 + 1, d), jnp.float32))
        self.patch_embeddings = _Projection(config, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> _Tokens:
        """Images [B, H, W, 3] -> tokens [B, 1 + patches, D]."""
        patches = self.patch_embeddings.projection(images)
        b, h, w, d = patches.shape
        first = jnp.broadcast_to(self.cls_token[...], (b, 1, d))
        tokens = jnp.concatenate([first, patches.reshape(b, h * w, d)], axis=1)
        positions = self.position_embeddings[...]
        # As transformers decides it: a long image with as many patches is interpolated.
        if h * w != self.grid**2 or images.shape[1] != images.shape[2]:
            positions = interpolate_positions(positions, h, w)
        return tokens + positions


class _Heads(nnx.Module):
    """The three projections before attention."""

    def __init__(self, config: Dinov2Config, *, rngs):
        d, bias = config.hidden_size, config.qkv_bias
        self.query = nnx.Linear(d, d, use_bias=bias, rngs=rngs)
        self.key = nnx.Linear(d, d, use_bias=bias, rngs=rngs)
        self.value = nnx.Linear(d, d, use_bias=bias, rngs=rngs)


class _Output(nnx.Module):
    """The projection after attention."""

    def __init__(self, config: Dinov2Config, *, rngs):
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, rngs=rngs)


class Dinov2Attention(nnx.Module):
    """Self-attention over all tokens."""

    def __init__(self, config: Dinov2Config, *, attend: AttentionFn, rngs):
        self.heads, self.attend = config.num_attention_heads, attend
        self.attention = _Heads(config, rngs=rngs)
        self.output = _Output(config, rngs=rngs)

    def __call__(self, x: _Tokens) -> _Tokens:
        """X [B, L, D] -> [B, L, D]."""
        layers = (self.attention.query, self.attention.key, self.attention.value)
        query, key, value = (layer(x).reshape(*x.shape[:-1], self.heads, -1) for layer in layers)
        return self.output.dense(self.attend(query, key, value).reshape(x.shape))


class LayerScale(nnx.Module):
    """A factor for each channel of a residual branch."""

    def __init__(self, dim: int):
        self.lambda1 = nnx.Param(jnp.ones(dim, jnp.float32))

    def __call__(self, x: _Tokens) -> _Tokens:
        """X [B, L, D] -> [B, L, D]."""
        return x * self.lambda1[...][None, None]


class Dinov2Layer(nnx.Module):
    """(2)."""

    def __init__(self, config: Dinov2Config, *, attend: AttentionFn, rngs):
        d = config.hidden_size
        norm = {"epsilon": config.layer_norm_eps, "rngs": rngs}
        self.norm1 = LayerNorm(d, **norm)
        self.attention = Dinov2Attention(config, attend=attend, rngs=rngs)
        self.layer_scale1 = LayerScale(d)
        self.norm2 = LayerNorm(d, **norm)
        self.mlp = CLIPMLP(config, dtype=jnp.float32, rngs=rngs)  # the same form and names
        self.layer_scale2 = LayerScale(d)

    def __call__(self, x: _Tokens) -> _Tokens:
        """X [B, L, D] -> [B, L, D]."""
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Dinov2Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: Dinov2Config, *, attend: AttentionFn, rngs):
        self.layer = nnx.List(
            [Dinov2Layer(config, attend=attend, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(self, x: _Tokens) -> _Tokens:
        """X [B, L, D] -> [B, L, D]."""
        for layer in self.layer:
            x = layer(x)
        return x


class Dinov2Model(nnx.Module):
    """Images to the class token's features."""

    def __init__(self, config: Dinov2Config, *, attend: AttentionFn = auto_attention, rngs):
        self.config = config
        self.embeddings = Dinov2Embeddings(config, rngs=rngs)
        self.encoder = Dinov2Encoder(config, attend=attend, rngs=rngs)
        self.layernorm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs)

    def pooled_features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """(3), transformers' pooler_output.

        Args:
            images: [B, H, W, 3], normalised as the checkpoint's preprocessor_config.json says; of
                any size from one patch on. What a whole number of patches leaves over at the bottom
                and at the right is not seen.

        Returns:
            [B, hidden_size] float32.
        """
        require_image(images, 3, self.config.patch_size)
        with jax.default_matmul_precision("highest"):  # of the shared layers too
            return self.layernorm(self.encoder(self.embeddings(images)))[:, 0]

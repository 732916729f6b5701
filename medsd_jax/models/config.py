"""Shapes of U-Net, VAE and CLIP, read from the config.json beside each component's weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from medsd_jax.errors import UserError
from medsd_jax.models.json_config import NOTES, TRANSFORMERS_NOTES, JsonConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(JsonConfig):
    """Shapes of UNet2DConditionModel. Field names are diffusers' own.

    Attributes:
        sample_size: side of the latents the model was trained on; what sampling defaults to.
        attention_head_dim: despite its name the NUMBER of heads (a diffusers naming accident that
            the published configs rely on), one for all levels or one a level.
        cross_attention_dim: width D of the text context.
        use_linear_projection: SD 2.x projects into the transformer by a linear layer, SD 1.x by a
            1x1 convolution; the weights' shapes differ.
        upcast_attention: queries and keys are multiplied in float32 whatever the compute dtype.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 1280
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    use_linear_projection: bool = False
    upcast_attention: bool = False

    _CLASS_NAME = "UNet2DConditionModel"
    # How the former Flax model computed the same attention.
    _NOTES = NOTES | {"split_head_dim", "use_memory_efficient_attention"}
    _MAY_BE_ZERO = frozenset({"freq_shift"})
    _ONE_A_LEVEL = frozenset(
        "layers_per_block cross_attention_dim transformer_layers_per_block "
        "reverse_transformer_layers_per_block only_cross_attention".split()
    )
    _SIDES = frozenset({"sample_size"})
    _MAX: ClassVar[Mapping[str, int]] = {"layers_per_block": 16, "sample_size": 2**13}
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "act_fn": ("silu", "swish"),
        "addition_embed_type": (None,),
        "addition_embed_type_num_heads": (64,),
        "addition_time_embed_dim": (None,),
        "attention_type": ("default",),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "downsample_padding": (1,),
        "dropout": (0, 0.0),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_scale_factor": (1,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "num_attention_heads": (None,),
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "projection_class_embeddings_input_dim": (None,),
        "resnet_out_scale_factor": (1, 1.0),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None, 1),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
        "transformer_layers_per_block": (1,),
    }

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads at each level, shallowest first."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)

    def _check(self, where: str) -> None:
        levels = len(self.block_out_channels)
        _check_blocks(
            where,
            "down_block_types",
            self.down_block_types,
            levels,
            ("CrossAttnDownBlock2D", "DownBlock2D"),
        )
        _check_blocks(
            where,
            "up_block_types",
            self.up_block_types,
            levels,
            ("CrossAttnUpBlock2D", "UpBlock2D"),
        )
        _check_groups(where, self.block_out_channels, self.norm_num_groups)
        if not 0 <= self.freq_shift < self.block_out_channels[0] // 2:
            raise UserError(
                f"{where}: freq_shift = {self.freq_shift} leaves no frequencies of time for "
                f"{self.block_out_channels[0]} channels; published models have 0 or 1"
            )
        if len(self.heads) != levels:
            raise UserError(
                f"{where}: attention_head_dim = {self.attention_head_dim} needs {levels} entries, "
                "one for each of block_out_channels"
            )
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % heads:
                raise UserError(
                    f"{where}: attention_head_dim = {self.attention_head_dim} (the number of heads)"
                    f" does not divide the {channels} of block_out_channels"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig(JsonConfig):
    """Shapes of AutoencoderKL. Field names are diffusers' own.

    Attributes:
        scaling_factor: latents are multiplied by it before the diffusion sees them, so that they
            have about unit variance (0.18215 in Stable Diffusion).
        force_upcast: asks torch to leave float16, kept for the way back; ours computes norms and
            softmax in float32 anyway.
    """

    sample_size: int = 512
    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True

    _CLASS_NAME = "AutoencoderKL"
    _SIDES = frozenset({"sample_size"})
    _ABOVE_ZERO = frozenset({"scaling_factor"})
    _MAX: ClassVar[Mapping[str, int]] = {"layers_per_block": 16, "sample_size": 2**16}
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
        "mid_block_add_attention": (True,),
        "shift_factor": (None, 0),
        "use_post_quant_conv": (True,),
        "use_quant_conv": (True,),
    }

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along one side (8 in Stable Diffusion)."""
        return 2 ** (len(self.block_out_channels) - 1)

    def _check(self, where: str) -> None:
        levels = len(self.block_out_channels)
        _check_blocks(
            where, "down_block_types", self.down_block_types, levels, ("DownEncoderBlock2D",)
        )
        _check_blocks(where, "up_block_types", self.up_block_types, levels, ("UpDecoderBlock2D",))
        _check_groups(where, self.block_out_channels, self.norm_num_groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(JsonConfig):
    """Shapes of CLIPTextModel. Field names are transformers' own."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    # Not used to compute the last hidden state; kept so that a round trip loses nothing.
    projection_dim: int = 512
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    pad_token_id: int | None = 1
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    _CLASS_NAME = "CLIPTextModel"
    _MAX: ClassVar[Mapping[str, int]] = {"num_hidden_layers": 200}
    _MAY_BE_ZERO = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "projection_dim"})
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "add_cross_attention": (False,),
        "attention_dropout": (0, 0.0),
        "dropout": (0, 0.0),
        "architectures": (None, ("CLIPTextModel",), ("CLIPTextModelWithProjection",)),
        "chunk_size_feed_forward": (0,),
        "is_decoder": (False,),
        "is_encoder_decoder": (False,),
        "model_type": ("clip_text_model",),
        "pruned_heads": (None, {}),
    }
    _NOTES = NOTES | TRANSFORMERS_NOTES

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that transformers reads back to the same shapes."""
        values = super().to_dict()
        del values["_class_name"]
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "torch_dtype": "float32",
            **values,
        }

    def _check(self, where: str) -> None:
        check_transformer(self, where, CLIP_ACTIVATIONS)


CLIP_ACTIVATIONS = ("quick_gelu", "gelu")


def check_transformer(config: Any, where: str, activations: tuple[str, ...]) -> None:
    """Raises UserError where a transformer's activation or number of heads cannot be computed with.

    Args:
        config: has hidden_act, hidden_size and num_attention_heads, as transformers calls them.
        where: the file, for the message.
        activations: that are implemented.
    """
    if config.hidden_act not in activations:
        known = " or ".join(map(repr, activations))
        raise UserError(
            f"{where}: hidden_act = {config.hidden_act!r} is not supported (only {known})"
        )
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{where}: num_attention_heads = {config.num_attention_heads} does not divide "
            f"hidden_size = {config.hidden_size}"
        )


_MAX_LEVELS = 8  # each halves the sides; published models have four


def _check_blocks(
    where: str, key: str, blocks: tuple[str, ...], levels: int, known: tuple[str, ...]
) -> None:
    if not 1 <= levels <= _MAX_LEVELS:
        raise UserError(
            f"{where}: block_out_channels has {levels} entries; a model has 1 to {_MAX_LEVELS}"
        )
    if len(blocks) != levels:
        raise UserError(
            f"{where}: {key} = {blocks} has {len(blocks)} entries, block_out_channels {levels}"
        )
    for block in blocks:
        if block not in known:
            raise UserError(
                f"{where}: {key} = {blocks} is not supported: {block!r} is none of "
                f"{', '.join(known)}"
            )


def _check_groups(where: str, channels: tuple[int, ...], groups: int) -> None:
    for c in channels:
        if c % groups:
            raise UserError(
                f"{where}: norm_num_groups = {groups} does not divide the {c} of block_out_channels"
            )

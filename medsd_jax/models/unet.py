"""UNet2DConditionModel of Stable Diffusion 1.x and 2.x (arXiv 2112.10752), diffusers' names."""

import jax
import jax.numpy as jnp
from flax import nnx

from medsd_jax.models.attention import AttentionFn, auto_attention
from medsd_jax.models.config import UNetConfig
from medsd_jax.models.layers import (
    Conv3x3,
    Downsample2D,
    GroupNorm,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    exact_products,
    sinusoidal_embedding,
)
from medsd_jax.models.transformer import Transformer2DModel


def _resnet(config: UNetConfig, cin: int, cout: int, dtype, rngs: nnx.Rngs) -> ResnetBlock2D:
    temb_dim = 4 * config.block_out_channels[0]
    return ResnetBlock2D(
        cin,
        cout,
        temb_dim,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        dtype=dtype,
        rngs=rngs,
    )


def _transformer(
    config: UNetConfig, level: int, attend: AttentionFn, dtype, rngs: nnx.Rngs
) -> Transformer2DModel:
    return Transformer2DModel(
        config.block_out_channels[level],
        config.cross_attention_dim,
        config.heads[level],
        groups=config.norm_num_groups,
        linear_projection=config.use_linear_projection,
        upcast=config.upcast_attention,
        attend=attend,
        dtype=dtype,
        rngs=rngs,
    )


def _remat(module: nnx.Module, *args: jax.Array) -> jax.Array:
    """Runs the module and forgets its activations; the backward pass computes them again."""
    return jax.checkpoint(lambda m, *a: m(*a))(module, *args)


def _plain(module: nnx.Module, *args: jax.Array) -> jax.Array:
    return module(*args)


class DownBlock(nnx.Module):
    """DownBlock2D, or CrossAttnDownBlock2D when `attend` is given."""

    def __init__(
        self, config: UNetConfig, level: int, *, attend: AttentionFn | None, dtype, rngs: nnx.Rngs
    ):
        channels = config.block_out_channels
        cin, cout, layers = channels[max(level - 1, 0)], channels[level], config.layers_per_block
        self.attentions = (
            nnx.List([_transformer(config, level, attend, dtype, rngs) for _ in range(layers)])
            if attend
            else None
        )
        self.resnets = nnx.List(
            [_resnet(config, cin if i == 0 else cout, cout, dtype, rngs) for i in range(layers)]
        )
        last = level == len(channels) - 1
        self.downsamplers = (
            None if last else nnx.List([Downsample2D(cout, padding=(1, 1), dtype=dtype, rngs=rngs)])
        )

    def __call__(self, x, temb, context, run) -> tuple[jax.Array, list[jax.Array]]:
        """X [B, H, W, C] -> (x for the next level, the skips of this one in order)."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = run(resnet, x, temb)
            if self.attentions is not None:
                x = run(self.attentions[i], x, context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """UNetMidBlock2DCrossAttn: resnet, transformer, resnet."""

    def __init__(self, config: UNetConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        channels = config.block_out_channels[-1]
        self.attentions = nnx.List([_transformer(config, -1, attend, dtype, rngs)])
        self.resnets = nnx.List(
            [_resnet(config, channels, channels, dtype, rngs) for _ in range(2)]
        )

    def __call__(self, x, temb, context, run) -> jax.Array:
        """X [B, H, W, C] -> [B, H, W, C]."""
        x = run(self.resnets[0], x, temb)
        x = run(self.attentions[0], x, context)
        return run(self.resnets[1], x, temb)


class UpBlock(nnx.Module):
    """UpBlock2D, or CrossAttnUpBlock2D when `attend` is given; `index` 0 is the deepest level."""

    def __init__(
        self, config: UNetConfig, index: int, *, attend: AttentionFn | None, dtype, rngs: nnx.Rngs
    ):
        channels = config.block_out_channels
        level = len(channels) - 1 - index
        cout, below, above = (
            channels[level],
            channels[min(level + 1, len(channels) - 1)],
            channels[max(level - 1, 0)],
        )
        layers = config.layers_per_block + 1
        resnets = []
        for i in range(layers):
            skip = above if i == layers - 1 else cout
            resnets.append(_resnet(config, (below if i == 0 else cout) + skip, cout, dtype, rngs))
        self.attentions = (
            nnx.List([_transformer(config, level, attend, dtype, rngs) for _ in range(layers)])
            if attend
            else None
        )
        self.resnets = nnx.List(resnets)
        self.upsamplers = (
            None if level == 0 else nnx.List([Upsample2D(cout, dtype=dtype, rngs=rngs)])
        )

    def __call__(self, x, temb, context, skips: list[jax.Array], run) -> jax.Array:
        """X [B, H, W, C] -> the next level's x. Takes this level's skips off the end of `skips`."""
        for i, resnet in enumerate(self.resnets):
            x = run(resnet, jnp.concatenate([x, skips.pop()], axis=-1), temb)
            if self.attentions is not None:
                x = run(self.attentions[i], x, context)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, skips[-1].shape[1:3])
        return x


class UNet2DConditionModel(nnx.Module):
    """Predicts noise, velocity or image, as it was trained, from noisy latents, time and text.

    Args:
        config: shapes, from the checkpoint's unet/config.json.
        dtype: of the computation; weights stay float32.
        attend: attention implementation, see models/attention.py.
        remat: recompute each resnet and transformer in the backward pass instead of storing it.
        rngs: for random weights.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype=jnp.float32,
        attend: AttentionFn = auto_attention,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype, self.remat = config, dtype, remat
        channels = config.block_out_channels
        self.conv_in = Conv3x3(config.in_channels, channels[0], dtype=dtype, rngs=rngs)
        self.time_embedding = TimestepEmbedding(
            channels[0], 4 * channels[0], dtype=dtype, rngs=rngs
        )
        self.down_blocks = nnx.List(
            [
                DownBlock(
                    config,
                    level,
                    attend=attend if kind.startswith("CrossAttn") else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for level, kind in enumerate(config.down_block_types)
            ]
        )
        self.mid_block = MidBlock(config, attend=attend, dtype=dtype, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpBlock(
                    config,
                    index,
                    attend=attend if kind.startswith("CrossAttn") else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for index, kind in enumerate(config.up_block_types)
            ]
        )
        self.conv_norm_out = GroupNorm(
            channels[0],
            num_groups=config.norm_num_groups,
            epsilon=config.norm_eps,
            dtype=dtype,
            rngs=rngs,
        )
        self.conv_out = Conv3x3(channels[0], config.out_channels, dtype=dtype, rngs=rngs)

    @exact_products
    def __call__(self, latents: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
        """One evaluation of the denoiser.

        Args:
            latents: [B, h, w, C] noisy latents (scaled); cast to the compute dtype.
            timesteps: [B] in [0, T), whole or fractions.
            context: [B, S, D] last hidden state of the text encoder.

        Returns:
            [B, h, w, C] float32, in the meaning of the schedule's prediction_type.
        """
        run = _remat if self.remat else _plain
        config = self.config
        time = sinusoidal_embedding(
            timesteps,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        temb = self.time_embedding(time.astype(self.dtype))
        context = context.astype(self.dtype)
        x = self.conv_in(latents.astype(self.dtype))
        skips = [x]
        for block in self.down_blocks:
            x, level_skips = block(x, temb, context, run)
            skips += level_skips
        x = self.mid_block(x, temb, context, run)
        for block in self.up_blocks:
            x = block(x, temb, context, skips, run)
        x = self.conv_out(nnx.silu(self.conv_norm_out(x)))
        return x.astype(jnp.float32)

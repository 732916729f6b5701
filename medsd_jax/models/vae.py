"""AutoencoderKL: images to latents and back, names as in diffusers."""

import jax
import jax.numpy as jnp
from flax import nnx

from medsd_jax.models.attention import AttentionFn, auto_attention
from medsd_jax.models.config import VAEConfig
from medsd_jax.models.layers import (
    Conv1x1,
    Conv3x3,
    Downsample2D,
    GroupNorm,
    ResnetBlock2D,
    Upsample2D,
    exact_products,
)

NORM_EPS = 1e-6  # of every GroupNorm in the VAE; diffusers does not put it into the config
LOGVAR_RANGE = (-30.0, 20.0)  # diffusers' clip; keeps exp() finite on untrained encoders


def _norm(channels: int, config: VAEConfig, dtype, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return GroupNorm(
        channels, num_groups=config.norm_num_groups, epsilon=NORM_EPS, dtype=dtype, rngs=rngs
    )


def _resnet(cin: int, cout: int, config: VAEConfig, dtype, rngs: nnx.Rngs) -> ResnetBlock2D:
    return ResnetBlock2D(
        cin, cout, None, groups=config.norm_num_groups, eps=NORM_EPS, dtype=dtype, rngs=rngs
    )


class SpatialAttention(nnx.Module):
    """Single-head self-attention over all pixels, with its norm and residual."""

    def __init__(
        self, channels: int, config: VAEConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs
    ):
        self.attend = attend
        self.group_norm = _norm(channels, config, dtype, rngs)
        self.to_q = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, C] -> [B, H, W, C]."""
        b, h, w, c = x.shape
        tokens = self.group_norm(x).reshape(b, h * w, c)
        query, key, value = (
            layer(tokens)[:, :, None, :] for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = self.attend(query, key, value).astype(x.dtype)
        return x + self.to_out[0](out.reshape(b, h, w, c))


class VAEMidBlock(nnx.Module):
    """Resnet, attention, resnet."""

    def __init__(
        self, channels: int, config: VAEConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs
    ):
        self.attentions = nnx.List(
            [SpatialAttention(channels, config, attend=attend, dtype=dtype, rngs=rngs)]
        )
        self.resnets = nnx.List(
            [_resnet(channels, channels, config, dtype, rngs) for _ in range(2)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, C] -> [B, H, W, C]."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class EncoderBlock(nnx.Module):
    """DownEncoderBlock2D."""

    def __init__(
        self, cin: int, cout: int, config: VAEConfig, *, last: bool, dtype, rngs: nnx.Rngs
    ):
        self.resnets = nnx.List(
            [
                _resnet(cin if i == 0 else cout, cout, config, dtype, rngs)
                for i in range(config.layers_per_block)
            ]
        )
        self.downsamplers = (
            None if last else nnx.List([Downsample2D(cout, padding=(0, 1), dtype=dtype, rngs=rngs)])
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, cin] -> [B, H/2, W/2, cout], or the same size at the last level."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class DecoderBlock(nnx.Module):
    """UpDecoderBlock2D."""

    def __init__(
        self, cin: int, cout: int, config: VAEConfig, *, last: bool, dtype, rngs: nnx.Rngs
    ):
        self.resnets = nnx.List(
            [
                _resnet(cin if i == 0 else cout, cout, config, dtype, rngs)
                for i in range(config.layers_per_block + 1)
            ]
        )
        self.upsamplers = None if last else nnx.List([Upsample2D(cout, dtype=dtype, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, cin] -> [B, 2H, 2W, cout], or the same size at the last level."""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class Encoder(nnx.Module):
    """Images to the moments of the posterior."""

    def __init__(self, config: VAEConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        channels = config.block_out_channels
        self.conv_in = Conv3x3(config.in_channels, channels[0], dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List(
            [
                EncoderBlock(
                    channels[max(i - 1, 0)],
                    c,
                    config,
                    last=i == len(channels) - 1,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, c in enumerate(channels)
            ]
        )
        self.mid_block = VAEMidBlock(channels[-1], config, attend=attend, dtype=dtype, rngs=rngs)
        self.conv_norm_out = _norm(channels[-1], config, dtype, rngs)
        self.conv_out = Conv3x3(channels[-1], 2 * config.latent_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, H, W, 3] -> [B, h, w, 2C]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to images."""

    def __init__(self, config: VAEConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        channels = config.block_out_channels[::-1]
        self.conv_in = Conv3x3(config.latent_channels, channels[0], dtype=dtype, rngs=rngs)
        self.mid_block = VAEMidBlock(channels[0], config, attend=attend, dtype=dtype, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                DecoderBlock(
                    channels[max(i - 1, 0)],
                    c,
                    config,
                    last=i == len(channels) - 1,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, c in enumerate(channels)
            ]
        )
        self.conv_norm_out = _norm(channels[-1], config, dtype, rngs)
        self.conv_out = Conv3x3(channels[-1], config.out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, h, w, C] -> [B, H, W, 3]."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Variational autoencoder with a diagonal Gaussian posterior.

    Latents here are the VAE's own, not yet multiplied by ``config.scaling_factor``.
    """

    def __init__(
        self,
        config: VAEConfig,
        *,
        dtype=jnp.float32,
        attend: AttentionFn = auto_attention,
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype = config, dtype
        self.encoder = Encoder(config, attend=attend, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, attend=attend, dtype=dtype, rngs=rngs)
        moments = 2 * config.latent_channels
        self.quant_conv = Conv1x1(moments, moments, dtype=dtype, rngs=rngs)
        self.post_quant_conv = Conv1x1(
            config.latent_channels, config.latent_channels, dtype=dtype, rngs=rngs
        )

    @exact_products
    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, 3] in [-1, 1] -> posterior mean, log variance, [B, h, w, C] float32."""
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    @exact_products
    def decode(self, latents: jax.Array) -> jax.Array:
        """Unscaled latents [B, h, w, C] -> images [B, H, W, 3] float32, not clipped to [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype))).astype(jnp.float32)


def sample_posterior(mean: jax.Array, logvar: jax.Array, noise: jax.Array) -> jax.Array:
    """Mean + exp(logvar / 2) noise: one draw from q(z | image), all [B, h, w, C] float32."""
    return mean + jnp.exp(0.5 * logvar) * noise

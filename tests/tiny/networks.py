"""Small configs in the style of SD 1.x and SD 2.x, and the way the tests run a module."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from medsd_jax.models import params as plumbing
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig

# norm_eps is large: a module that used another epsilon would be seen at once.
UNET_SD1 = UNetConfig(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 32),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=24,
    norm_num_groups=8,
    norm_eps=1e-2,
)
# Three levels, so that a 10 x 6 latent is 5 x 3 and 3 x 2 below and upsampling must take the
# skip's size.
UNET_SD2 = UNetConfig(
    sample_size=8,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 32, 48),
    layers_per_block=2,
    attention_head_dim=(2, 4, 8),
    cross_attention_dim=40,
    norm_num_groups=4,
    use_linear_projection=True,
    upcast_attention=True,
)
VAE = VAEConfig(
    sample_size=32,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(16, 32, 32),
    layers_per_block=2,
    norm_num_groups=8,
)
CLIP_SD1 = CLIPTextConfig(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=13,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-3,
    projection_dim=32,
    bos_token_id=0,
    eos_token_id=2,
)
CLIP_SD2 = CLIPTextConfig(
    vocab_size=99,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=8,
    max_position_embeddings=13,
    hidden_act="gelu",
    projection_dim=32,
    bos_token_id=0,
    eos_token_id=2,
)


def unet_inputs(config: UNetConfig, height: int, width: int, *, batch: int = 2, tokens: int = 7):
    """Latents [B, h, w, C], timesteps [B] and context [B, S, D], always the same ones."""
    rng = np.random.default_rng(7)
    return (
        rng.standard_normal((batch, height, width, config.in_channels), np.float32),
        np.array([981, 3, 500, 0][:batch], np.int32),
        rng.standard_normal((batch, tokens, config.cross_attention_dim), np.float32),
    )


def random_weights(make_module, seed: int = 0):
    """Structure and random weights of a module; drawn by numpy, which compiles nothing."""
    graphdef, like = plumbing.abstract(make_module)
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        x = rng.standard_normal(shape, np.float32)
        if name.endswith((".scale", ".bias")):
            x = 0.1 * x + name.endswith(".scale")
        elif name.endswith(".kernel"):
            x /= math.sqrt(math.prod(shape[:-1]))
        return jnp.asarray(x, jnp.float32)

    return graphdef, {name: draw(name, x.shape) for name, x in like.items()}


QUICK = {"xla_backend_optimization_level": 0}
"""Little time for machine code: compiling is what a tiny model costs."""


def jit(fn, **kwargs):
    """jax.jit with `QUICK`."""
    return jax.jit(fn, compiler_options=QUICK, **kwargs)


def run(graphdef, weights, *args, method: str = "__call__", jit=jit):
    """One jitted call of a method of the module with these weights."""
    fn = jit(lambda p, *a: getattr(plumbing.bind(graphdef, p), method)(*a))
    return fn(weights, *map(jnp.asarray, args))

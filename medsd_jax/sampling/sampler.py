"""Prompt ids to 8-bit pictures: ONE jitted program.

Prompts, negative prompts, seeds, guidance scale, eta and the number of steps are arguments of the
program, so changing any of them compiles nothing. Shapes (batch, height, width), the largest number
of steps, the compute dtype and the model's structure are what it is compiled for.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from medsd_jax.arrays import Params
from medsd_jax.diffusion.ddim import ddim_sample, step_tables
from medsd_jax.diffusion.guidance import guided
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medsd_jax.errors import UserError
from medsd_jax.models.attention import attention_implementation
from medsd_jax.models.config import UNetConfig, VAEConfig
from medsd_jax.models.params import abstract, bind, component
from medsd_jax.models.text_encoder import TextEncoderConfig, text_encoder_module
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.parallel.mesh import batch_sharding, replicated
from medsd_jax.parallel.multihost import put_global
from medsd_jax.parallel.sharding import tree_shardings
from medsd_jax.sampling.images import to_uint8

DTYPES = ("float32", "bfloat16")
"""Compute dtypes. float16 is none of them: activations of Stable Diffusion 2 overflow in it."""


@dataclass(frozen=True)
class SamplerShape:
    """All that a sampling program is compiled for.

    Attributes:
        unet: U-Net shapes.
        vae: VAE shapes.
        text_encoder: text encoder shapes.
        schedule: noise schedule and prediction type.
        height: of the pictures in pixels, a multiple of ``vae.downscale``.
        width: likewise.
        max_steps: largest number of steps that can be asked for.
        dtype: name of the compute dtype, "float32" or "bfloat16".
        attention: name of the attention implementation.
    """

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: TextEncoderConfig
    schedule: ScheduleConfig
    height: int
    width: int
    max_steps: int = 1000
    dtype: str = "float32"
    attention: str = "auto"

    @property
    def latents(self) -> tuple[int, int, int]:
        """(h, w, C) of one image's latents."""
        return (
            self.height // self.vae.downscale,
            self.width // self.vae.downscale,
            self.unet.in_channels,
        )

    def check(self) -> None:
        """Raises UserError where the numbers cannot be sampled with."""
        for name, size in (("height", self.height), ("width", self.width)):
            if size < 1 or size % self.vae.downscale:
                raise UserError(
                    f"{name} = {size} must be a positive multiple of {self.vae.downscale} pixels"
                )
        if (
            self.unet.in_channels != self.vae.latent_channels
            or self.unet.out_channels != self.vae.latent_channels
        ):
            raise UserError(
                f"the U-Net works on {self.unet.in_channels} -> {self.unet.out_channels} channels, "
                f"the VAE on {self.vae.latent_channels}: only plain text-to-image models can be "
                "sampled"
            )
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        attention_implementation(self.attention)


Leaf = Any
"""A numpy array on the host, traced inside the program; or a sharding, in a tree of shardings."""


@dataclass(frozen=True)
class SampleInputs:
    """One batch of requests, on the host. Registered as a pytree: all of it is traced.

    Attributes:
        prompt_ids: [B, S] int32.
        negative_ids: [B, S] int32, what guidance pushes away from; the empty prompt by default.
        seeds: [B] uint32; image i depends on seeds[i] alone, whatever B and the devices are.
        start: [B, h, w, C] float32 unit noise to start from instead of the seed's, where use_start.
        use_start: [] bool.
        timesteps: [max_steps] int32, `num_steps` of them used.
        previous: [max_steps] int32, the time each step goes to.
        num_steps: [] int32.
        guidance_scale: [] float32; 1 is the plain conditional model.
        eta: [] float32; 0 is deterministic DDIM, 1 is ancestral sampling as in DDPM.
    """

    prompt_ids: Leaf
    negative_ids: Leaf
    seeds: Leaf
    start: Leaf
    use_start: Leaf
    timesteps: Leaf
    previous: Leaf
    num_steps: Leaf
    guidance_scale: Leaf
    eta: Leaf


jax.tree_util.register_dataclass(SampleInputs)


def make_inputs(
    shape: SamplerShape,
    prompt_ids: np.ndarray,
    negative_ids: np.ndarray,
    seeds: np.ndarray,
    *,
    num_steps: int,
    guidance_scale: float,
    eta: float,
    start: np.ndarray | None = None,
) -> SampleInputs:
    """Checks one batch of requests and lays it out for the program.

    Args:
        shape: what the program is compiled for.
        prompt_ids: [B, S] int32.
        negative_ids: [B, S] int32.
        seeds: [B] integers in [0, 2^32).
        num_steps: in [1, shape.max_steps].
        guidance_scale: finite.
        eta: in [0, 1].
        start: [B, h, w, C] float32 unit noise, or None to draw it from the seeds.

    Raises:
        UserError: a value is out of its range or an array has the wrong shape.
    """
    shape.check()
    most = min(shape.max_steps, shape.schedule.num_train_timesteps)
    if not isinstance(num_steps, int | np.integer) or not 1 <= num_steps <= most:
        raise UserError(f"num_steps = {num_steps} must be a whole number between 1 and {most}")
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta = {eta} must lie between 0 (deterministic) and 1")
    if not np.isfinite(guidance_scale):
        raise UserError(f"guidance_scale = {guidance_scale} must be a finite number")
    for seed in np.asarray(seeds, object):
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise UserError(f"seed {seed} must be a whole number between 0 and {2**32 - 1}")
    wanted = (len(prompt_ids), *shape.latents)
    if start is not None and start.shape != wanted:
        raise UserError(f"start latents have shape {start.shape}, these pictures need {wanted}")
    if start is not None and not np.isfinite(start).all():
        raise UserError("start latents contain values that are not finite; give unit noise")
    timesteps, previous = step_tables(shape.schedule, num_steps, shape.max_steps)
    return SampleInputs(
        prompt_ids=np.asarray(prompt_ids, np.int32),
        negative_ids=np.asarray(negative_ids, np.int32),
        seeds=np.asarray(seeds, np.uint32),
        start=np.zeros(wanted, np.float32) if start is None else np.asarray(start, np.float32),
        use_start=np.bool_(start is not None),
        timesteps=timesteps,
        previous=previous,
        num_steps=np.int32(num_steps),
        guidance_scale=np.float32(guidance_scale),
        eta=np.float32(eta),
    )


def make_generate(shape: SamplerShape) -> Callable[[Params, SampleInputs], jax.Array]:
    """Returns the pure ``generate(params, inputs) -> images [B, H, W, 3] uint8``."""
    shape.check()
    dtype, attend = jnp.dtype(shape.dtype), attention_implementation(shape.attention)
    unet, _ = abstract(
        functools.partial(UNet2DConditionModel, shape.unet, dtype=dtype, attend=attend)
    )
    vae, _ = abstract(functools.partial(AutoencoderKL, shape.vae, dtype=dtype))
    text_encoder, _ = abstract(text_encoder_module(shape.text_encoder, dtype=dtype))
    schedule = NoiseSchedule.from_config(shape.schedule)

    def generate(params: Params, inputs: SampleInputs) -> jax.Array:
        encode = bind(text_encoder, component(params, "text_encoder"))
        denoise = bind(unet, component(params, "unet"))
        context, negative = encode(inputs.prompt_ids), encode(inputs.negative_ids)

        keys = jax.vmap(jax.random.key)(inputs.seeds)
        draw = jax.vmap(lambda key: jax.random.normal(key, shape.latents))

        def fresh_keys(i: ArrayLike) -> jax.Array:
            """The i-th key of every image; 0 is for the start, i + 1 for step i."""
            return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)

        start = jnp.where(inputs.use_start, inputs.start, draw(fresh_keys(0)))

        def step_noise(i: jax.Array) -> jax.Array:
            """Unit noise [B, h, w, C] of step i; zeros, and no work, when eta is 0."""
            return jax.lax.cond(
                inputs.eta > 0.0, draw, lambda keys: jnp.zeros_like(start), fresh_keys(i + 1)
            )

        predict = guided(denoise, inputs.guidance_scale)
        latents = ddim_sample(
            lambda x, t: predict(x, t, context, negative),
            schedule,
            start,
            inputs.timesteps,
            inputs.previous,
            inputs.num_steps,
            inputs.eta,
            step_noise,
            clip_range=shape.schedule.clip_range,
        )
        images = bind(vae, component(params, "vae")).decode(latents / shape.vae.scaling_factor)
        return to_uint8(images)

    return generate


@functools.lru_cache(maxsize=8)
def compiled_sampler(
    shape: SamplerShape, mesh: Mesh
) -> Callable[[Params, SampleInputs], jax.Array]:
    """The jitted program of `shape` on `mesh`: batch rows spread over all data and fsdp shards.

    Cached, so a notebook that samples twice compiles once.
    """
    # Params come already placed (place_params); their shardings are taken as they are.
    return jax.jit(
        make_generate(shape),
        in_shardings=(None, _input_shardings(mesh)),
        out_shardings=batch_sharding(mesh),
    )


def _input_shardings(mesh: Mesh) -> SampleInputs:
    rows, whole = batch_sharding(mesh), replicated(mesh)
    return SampleInputs(
        prompt_ids=rows,
        negative_ids=rows,
        seeds=rows,
        start=rows,
        use_start=whole,
        timesteps=whole,
        previous=whole,
        num_steps=whole,
        guidance_scale=whole,
        eta=whole,
    )


def place_params(params: Mapping[str, jax.Array | np.ndarray], mesh: Mesh) -> Params:
    """Puts the weights onto the mesh by the sharding table."""
    return put_global(dict(params), tree_shardings(params, mesh))


def place_inputs(inputs: SampleInputs, mesh: Mesh) -> SampleInputs:
    """Puts one batch of requests onto the mesh; every process holds the whole batch."""
    return put_global(inputs, _input_shardings(mesh))

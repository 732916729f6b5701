"""What a sampling program is compiled for, and what one batch of requests brings to it."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from medsd_jax.bounds import MAX_GUIDANCE, MAX_PIXELS
from medsd_jax.diffusion.samplers import check_sampler, make_step_table
from medsd_jax.diffusion.schedule import ScheduleConfig
from medsd_jax.errors import UserError
from medsd_jax.models.attention import attention_implementation
from medsd_jax.models.config import UNetConfig, VAEConfig
from medsd_jax.models.text_encoder import TextEncoderConfig

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
        height: of the images in pixels, a multiple of ``vae.downscale``.
        width: likewise.
        max_steps: largest number of steps that a run can have.
        dtype: name of the compute dtype, "float32" or "bfloat16".
        attention: name of the attention implementation.
        sampler: name of the sampler, of diffusion/samplers.py.
        edits: whether images are redrawn, or drawn from noise alone.
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
    sampler: str = "ddim"
    edits: bool = False

    @property
    def latents(self) -> tuple[int, int, int]:
        """(h, w, C) of one image's latents."""
        return (
            self.height // self.vae.downscale,
            self.width // self.vae.downscale,
            self.unet.in_channels,
        )

    def check(self) -> None:
        """Raises UserError where these values cannot be sampled with."""
        for name, size in (("height", self.height), ("width", self.width)):
            if size < 1 or size % self.vae.downscale:
                raise UserError(
                    f"{name} = {size} must be a positive multiple of {self.vae.downscale} pixels"
                )
            if size > MAX_PIXELS:
                raise UserError(f"{name} = {size} must be at most {MAX_PIXELS} pixels")
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
        check_sampler(self.sampler)


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
        step_table: what the sampler does, step by step; it holds the number of steps and eta.
        guidance_scale: [] float32; 1 is the plain conditional model.
        guidance_rescale: [] float32; 0 is off.
        given_u8: [B, H, W, 3] uint8, the images to redraw; None where the program edits none.
        weights: [B, H, W] float32 in [0, 1], how much of each pixel is redrawn; likewise.
    """

    prompt_ids: Leaf
    negative_ids: Leaf
    seeds: Leaf
    start: Leaf
    use_start: Leaf
    step_table: Leaf
    guidance_scale: Leaf
    guidance_rescale: Leaf
    given_u8: Leaf = None
    weights: Leaf = None


jax.tree_util.register_dataclass(SampleInputs)


def make_inputs(
    shape: SamplerShape,
    prompt_ids: np.ndarray,
    negative_ids: np.ndarray,
    seeds: np.ndarray,
    *,
    num_steps: int,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    start: np.ndarray | None = None,
    strength: float = 1.0,
    given_u8: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> SampleInputs:
    """Checks one batch of requests and lays it out for the program.

    Args:
        shape: what the program is compiled for.
        prompt_ids: [B, S] int32.
        negative_ids: [B, S] int32.
        seeds: [B] integers in [0, 2^32).
        num_steps: in [1, shape.max_steps].
        guidance_scale: finite.
        guidance_rescale: in [0, 1]; 0 is off.
        eta: in [0, 1], of DDIM; 0 for other samplers.
        start: [B, h, w, C] float32 unit noise, or None to draw it from the seeds.
        strength: in (0, 1], the fraction of the steps that is made.
        given_u8: [B, H, W, 3] uint8 where shape.edits, else None.
        weights: [B, H, W] float32 in [0, 1] where shape.edits, else None.

    Raises:
        UserError: a value is out of its range or an array has the wrong shape.
    """
    shape.check()
    if not abs(guidance_scale) <= MAX_GUIDANCE:
        raise UserError(
            f"guidance_scale = {guidance_scale} must be a finite number, at least "
            f"{-MAX_GUIDANCE} and at most {MAX_GUIDANCE}"
        )
    if not 0.0 <= guidance_rescale <= 1.0:
        raise UserError(f"guidance_rescale = {guidance_rescale} must lie between 0 (off) and 1")
    for seed in np.asarray(seeds, object):
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise UserError(f"seed {seed} must be a whole number between 0 and {2**32 - 1}")
    assert (given_u8 is not None) == (weights is not None) == shape.edits
    expected = (len(prompt_ids), *shape.latents)
    if start is not None and start.shape != expected:
        raise UserError(f"start latents have shape {start.shape}, these images need {expected}")
    if start is not None and not np.isfinite(start).all():
        raise UserError("start latents contain values that are not finite; give unit noise")
    return SampleInputs(
        prompt_ids=np.asarray(prompt_ids, np.int32),
        negative_ids=np.asarray(negative_ids, np.int32),
        seeds=np.asarray(seeds, np.uint32),
        start=np.zeros(expected, np.float32) if start is None else np.asarray(start, np.float32),
        use_start=np.bool_(start is not None),
        step_table=make_step_table(
            shape.sampler, shape.schedule, num_steps, shape.max_steps, eta=eta, strength=strength
        ),
        guidance_scale=np.float32(guidance_scale),
        guidance_rescale=np.float32(guidance_rescale),
        given_u8=given_u8,
        weights=weights,
    )

"""Array vocabulary: one word a thing, and the axis legend used throughout the package.

B batch, H W pixels, h w latent cells (H / 8 in Stable Diffusion), C channels, L image tokens,
S text tokens (77 for CLIP), D width, N heads, K head width, T train timesteps.
"""

import jax
from jaxtyping import Array, Float, Int, UInt8

Params = dict[str, jax.Array]
"""Flat weights: diffusers/transformers state-dict path -> array, e.g. ``unet.conv_in.kernel``."""

Images = Float[Array, "B H W 3"]
"""Float pictures in [-1, 1], channels last."""

ImagesU8 = UInt8[Array, "B H W 3"]
"""8-bit pictures, channels last."""

Latents = Float[Array, "B h w C"]
"""VAE latents multiplied by ``vae.scaling_factor``: what the diffusion sees."""

PromptIds = Int[Array, "B S"]
"""Token ids of prompts, padded to the text encoder's length."""

Context = Float[Array, "B S D"]
"""The text encoder's last hidden state: what the U-Net attends to."""

Timesteps = Int[Array, " B"]
"""Diffusion times, int32 in [0, T)."""

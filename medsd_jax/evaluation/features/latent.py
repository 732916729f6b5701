"""The latent space of a Stable Diffusion model: the mean of the VAE's posterior, scaled, flattened.

    (1)  z = scaling_factor mean(q(z | image))

It is what the diffusion model was trained on, but for the posterior's noise: an image that it
gives back lies near its training image here. Of the VAE only the encoder's half is kept.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from medsd_jax.arrays import from_uint8_on_host
from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import resize_to_square
from medsd_jax.interop.diffusers_folder import LoadedVAE, load_vae
from medsd_jax.interop.model_index import read_json
from medsd_jax.models.config import VAEConfig
from medsd_jax.models.params import abstract
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.vision.layers import require_image

_RESIZE_MODE = "pad"
"""For a model without a recipe beside it; what the default config and RoentGen take."""


class LatentMean(AutoencoderKL):
    """The VAE without its decoder."""

    def __init__(self, config: VAEConfig, *, rngs):
        super().__init__(config, rngs=rngs)
        del self.decoder, self.post_quant_conv

    def pooled_features(self, images: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """(1).

        Args:
            images: [B, H, W, 3] in [-1, 1].

        Returns:
            [B, h w C] float32; position (y, x), channel c is at (y w + x) C + c.
        """
        require_image(images, self.config.in_channels, self.config.downscale)
        with jax.default_matmul_precision("highest"):  # as in layers.py
            mean, _ = self.encode(images)
        return (self.config.scaling_factor * mean).reshape(mean.shape[0], -1)


@dataclass(frozen=True)
class LatentSpace:
    """The encoder with its weights, and the size that images get.

    Attributes:
        config: shape of the VAE and its scaling factor.
        image_size: pixels, square.
        resize_mode: how images become square, see data/transforms.py.
        graphdef: structure.
        params: float32 weights on the host.
    """

    config: VAEConfig
    image_size: int
    resize_mode: str
    graphdef: nnx.GraphDef
    params: Mapping[str, np.ndarray]

    @property
    def steps(self) -> str:
        """The input chain in words."""
        size = self.image_size
        return f"grey repeated to RGB; bilinear to {size}x{size}, {self.resize_mode}; x / 127.5 - 1"

    def batch(self, images: list[np.ndarray]) -> np.ndarray:
        """Images [H, W] or [H, W, 3] uint8 -> [B, S, S, 3] float32, prepared as in training."""
        return from_uint8_on_host(resize_to_square(images, self.image_size, self.resize_mode))


def open_latent_space(model: str) -> LatentSpace:
    """Reads the VAE of a model; its other weights are not opened.

    Args:
        model: a diffusers folder, a hub id or a training workdir. Images get the size and the
            resize mode of the workdir's recipe; without one, the size that the U-Net was trained
            for, and black bars where they are not square.

    Raises:
        UserError: there is no such model, or it cannot be used.
    """
    vae = load_vae(model)
    if vae.config.in_channels != 3:
        raise UserError(f"latent={model}: its VAE takes {vae.config.in_channels} channels, not RGB")
    size, mode = input_of(model, vae)
    graphdef, like = abstract(functools.partial(LatentMean, vae.config))
    params = {name: vae.params[name] for name in like}
    return LatentSpace(vae.config, size, mode, graphdef, params)


def input_of(model: str, vae: LoadedVAE) -> tuple[int, str]:
    """Size and resize mode that images get for a model's VAE, see `open_latent_space`."""
    return _of_the_recipe(Path(model).expanduser()) or (vae.image_size, _RESIZE_MODE)


def _of_the_recipe(workdir: Path) -> tuple[int, str] | None:
    """Image size and resize mode of the run whose model is WORKDIR/model; None elsewhere."""
    path = workdir / "config.json"
    if (workdir / "model_index.json").is_file() or not path.is_file():
        return None
    data = read_json(path).get("data")
    data = data if isinstance(data, dict) else {}
    size, mode = data.get("image_size"), data.get("resize_mode")
    if type(size) is not int or mode not in RESIZE_MODES:
        raise UserError(
            f"{path} does not say data.image_size and data.resize_mode as a training writes them; "
            f"give {workdir / 'model'} instead"
        )
    return size, mode

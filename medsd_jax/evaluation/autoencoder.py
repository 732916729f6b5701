"""A model's autoencoder alone: what it gives back of an image.

    (1)  y = decode(mean of q(z | x))

Training draws its latents from q; the mean leaves that noise out, and nothing is random.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from medsd_jax.arrays import Params
from medsd_jax.data.transforms import check_resize_mode
from medsd_jax.errors import UserError
from medsd_jax.evaluation.features.latent import input_of
from medsd_jax.evaluation.metrics.similarity import most_scales
from medsd_jax.interop.diffusers_folder import load_vae
from medsd_jax.models.networks import graph
from medsd_jax.models.params import bind, with_prefix
from medsd_jax.models.stable_diffusion import weights_fingerprint


@dataclass(frozen=True)
class Autoencoder:
    """Encoder and decoder with their weights, and the size that images get.

    Attributes:
        reconstruct: ``(params, images) -> images``, (1): [B, S, S, 3] float32 in [-1, 1] -> the
            same shape, not clipped; may be traced.
        params: float32 weights on the host.
        image_size: S, pixels.
        resize_mode: how images become square, see data/transforms.py.
        fingerprint: 16 hex digits that change with any bit of the weights.
    """

    reconstruct: Callable[[Params, jax.Array], jax.Array]
    params: Mapping[str, np.ndarray]
    image_size: int
    resize_mode: str
    fingerprint: str


def open_autoencoder(
    model: str, image_size: int | None = None, resize_mode: str | None = None
) -> Autoencoder:
    """Reads the VAE of a model; its other weights are not opened.

    Args:
        model: a diffusers folder, a hub id or a training workdir.
        image_size: pixels, square. None: of the workdir's recipe; without one, the size that the
            U-Net was trained for.
        resize_mode: None: of the workdir's recipe; without one, black bars where an image is not
            square.

    Raises:
        UserError: there is no such model, it cannot be used, or the size does not fit.
    """
    vae = load_vae(model)
    channels = {vae.config.in_channels, vae.config.out_channels}
    if channels != {3}:
        raise UserError(
            f"{model}: its VAE takes {vae.config.in_channels} channels and gives "
            f"{vae.config.out_channels}, not RGB"
        )
    if image_size is None or resize_mode is None:
        size, mode = input_of(model, vae)
        image_size, resize_mode = image_size or size, resize_mode or mode
    check_resize_mode(resize_mode)
    downscale = vae.config.downscale
    if image_size % downscale or not most_scales(image_size, image_size):
        raise UserError(
            f"images of {image_size} pixels: this VAE takes multiples of {downscale}, and SSIM "
            "at least 11; give another image size"
        )
    graphdef = graph("vae", vae.config)

    def reconstruct(params: Params, images: jax.Array) -> jax.Array:
        module = bind(graphdef, params)
        with jax.default_matmul_precision("highest"):  # bfloat16 products would be measured too
            mean, _ = module.encode(images)
            return module.decode(mean)

    fingerprint = weights_fingerprint(with_prefix(vae.params, "vae"))
    return Autoencoder(reconstruct, vae.params, image_size, resize_mode, fingerprint)

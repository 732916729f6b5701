"""How different the images of one prompt are: intra-prompt MS-SSIM, as RoentGen measures it."""

import logging
from collections.abc import Sequence

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import ImageSet
from medsd_jax.evaluation.metrics.intervals import bootstrap_interval
from medsd_jax.evaluation.metrics.similarity import intra_prompt_ms_ssim, most_scales
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.evaluation import Diversity

_log = logging.getLogger(__name__)

IMAGES_PER_PROMPT = 4
"""RoentGen's protocol: the first four images of each prompt, six pairs."""


def diversity(
    images: ImageSet, units: Sequence[str] | None = None, *, seed: int = 0
) -> Diversity | None:
    """Mean MS-SSIM between images of the same prompt; the lower, the more diverse.

    The interval resamples prompts. It speaks of other prompts with other start noises where each
    image has its own; where prompts share them, which is warned of, of other prompts with these.

    Args:
        images: with their prompts.
        units: [n], equal for images of one start noise; each its own if None.
        seed: of the bootstrap over prompts.

    Returns:
        None where no prompt has at least two images. MS-SSIM has an interval where there are two
        prompts or more; images below 161 pixels have room for fewer than the published 5 scales.

    Raises:
        UserError: images of one set have several sizes.
    """
    by_prompt: dict[str, list[int]] = {}
    for number, prompt in enumerate(images.texts):
        if prompt:
            by_prompt.setdefault(prompt, []).append(number)
    most = max((len(numbers) for numbers in by_prompt.values()), default=0)
    count = min(IMAGES_PER_PROMPT, most)
    if count < 2:
        return None
    chosen = [numbers[:count] for numbers in by_prompt.values() if len(numbers) >= count]
    if units is not None:
        noises = [units[i] for numbers in chosen for i in numbers]
        if len(chosen) > 1 and len(set(noises)) < len(noises):
            _log.warning(
                "%s: the %d images that MS-SSIM compares share %d start noises: its interval "
                "says what other prompts would do, not other start noises",
                images.name, len(noises), len(set(noises)),
            )  # fmt: skip
    greys = [[_grey(images.read(i)) for i in numbers] for numbers in chosen]
    sizes = {grey.shape for of_prompt in greys for grey in of_prompt}
    if len(sizes) > 1:
        listed = ", ".join(f"{h}x{w}" for h, w, _ in sorted(sizes))
        raise UserError(f"{images.name}: MS-SSIM compares images of one size, not {listed}")
    height, width, _ = sizes.pop()
    scales = most_scales(height, width)
    if not scales:
        raise UserError(f"{images.name}: {height}x{width} images are too small for SSIM")
    result = intra_prompt_ms_ssim(np.stack([np.stack(g) for g in greys]), num_scales=scales)
    estimate = Estimate(result.mean, len(chosen))
    if len(chosen) > 1:
        estimate = bootstrap_interval(np.mean, result.of_prompts, seed=seed)
    return Diversity(
        ms_ssim=estimate,
        std=result.std,
        images_per_prompt=count,
        num_prompts=len(chosen),
        prompts_left_out=len(by_prompt) - len(chosen),
        num_scales=scales,
    )


def _grey(image: np.ndarray) -> np.ndarray:
    """-> [H, W, 1] float32 in [0, 1]; colours are averaged."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    return (grey / 255.0).astype(np.float32)[..., None]

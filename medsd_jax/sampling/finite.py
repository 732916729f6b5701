"""Whether the numbers behind an image are finite, part by part.

An 8-bit image cannot say so: what is not a number becomes black, and a cohort of black images is
evaluated like any other. One flag a part and image comes out of the sampling program for this.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from medsd_jax.errors import UserError

PARTS = ("text encoder", "VAE's encoder", "U-Net", "VAE's decoder")
"""In the order in which they work: what follows a part that fails fails with it."""
_SHOWN_PROMPT = 60  # characters; a report has thousands


def finite_flags(*of_parts: Float[jax.Array, "B ..."]) -> Bool[jax.Array, "B parts"]:
    """Computes the flags inside the program.

    Args:
        of_parts: what each of `PARTS` gave, in their order.

    Returns:
        [B, 4], true where all numbers of the image are finite.
    """
    assert len(of_parts) == len(PARTS)
    return jnp.stack([_all_finite(x) for x in of_parts], axis=1)


def require_finite_images(
    finite: Bool[np.ndarray, "B parts"],
    first: int,
    prompts: Sequence[str],
    seeds: np.ndarray,
) -> None:
    """Refuses images that came of numbers which are not finite.

    Args:
        finite: [B, 4] of images `first`, `first` + 1, ... of a run.
        first: the number of the first of them.
        prompts: of all images of the run.
        seeds: [n] integers, likewise.

    Raises:
        UserError: names the first such image, and the part that failed first.
    """
    bad = np.flatnonzero(~finite.all(axis=1))
    if not len(bad):
        return
    number = first + int(bad[0])
    part = PARTS[int(np.argmin(finite[bad[0]]))]
    prompt = prompts[number]
    shown = prompt if len(prompt) <= _SHOWN_PROMPT else prompt[:_SHOWN_PROMPT] + "..."
    raise UserError(
        f"the {part} gives numbers that are not finite (NaN or infinite), so no image can come of "
        f"it: image {number} (prompt {shown!r}, seed {seeds[number]}), {len(bad)} of "
        f"{len(finite)} at once; the training that wrote it diverged, or what is added to it is "
        "too strong (the scale of a LoRA, guidance_scale): take an earlier or another copy, or a "
        "smaller scale"
    )


def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))

"""Position embeddings for another grid of patches than the trained one.

Images of another size than the trained one have h x w patches instead of n x n. Along each axis,
without antialiasing, as torch's bicubic interpolation does it:

    (1)  s(i) = (i + 1/2) n / h - 1/2
    (2)  p'(i) = sum over the four integers j around s(i) of c(s(i) - j) p(min(max(j, 0), n - 1))
    (3)  c(t) = (a + 2)|t|^3 - (a + 3) t^2 + 1      for |t| <= 1,
         c(t) = a (|t|^3 - 5 t^2 + 8 |t| - 4)       for 1 < |t| < 2,      a = -3/4
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75  # torch's; Pillow and jax.image.resize take -0.5


def interpolate_positions(
    positions: Float[Array, "1 _ D"], height: int, width: int
) -> Float[Array, "1 _ D"]:
    """(1) to (3).

    Args:
        positions: [1, 1 + n n, D], the class token's first.
        height: patches.
        width: patches.

    Returns:
        [1, 1 + height * width, D]; the class token's position stays.
    """
    _, tokens, dim = positions.shape
    n = round((tokens - 1) ** 0.5)
    rows, columns = (jnp.asarray(_cubic_weights(n, m)) for m in (height, width))
    grid = positions[0, 1:].reshape(n, n, dim)
    grid = jnp.einsum("hi,wj,ijd->hwd", rows, columns, grid)
    return jnp.concatenate([positions[:, :1], grid.reshape(1, height * width, dim)], axis=1)


def _cubic_weights(n: int, m: int) -> np.ndarray:
    """[m, n] float32: what each of n positions adds to each of m."""
    source = (np.arange(m) + 0.5) * (n / m) - 0.5
    before = np.floor(source).astype(int)
    weights = np.zeros((m, n))
    for offset in (-1, 0, 1, 2):
        t = np.abs(source - (before + offset))
        near = (_A + 2) * t**3 - (_A + 3) * t**2 + 1
        far = _A * (t**3 - 5 * t**2 + 8 * t - 4)
        # Several neighbours beyond the edge fall on the same position.
        at = (np.arange(m), (before + offset).clip(0, n - 1))
        np.add.at(weights, at, np.where(t <= 1, near, far))
    return weights.astype(np.float32)

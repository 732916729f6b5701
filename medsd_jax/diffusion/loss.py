"""The training loss: squared error of the prediction, weighted by time.

Symbols: y the prediction target, f the network's output, snr = a / b with a = alphas_cumprod[t]
and b = 1 - a, g = gamma of min-SNR (5 in the paper), w[t] the weight.

    (1)  loss = mean_B( w[t] * mean_hwC( (f - y)^2 ) )     DDPM (2006.11239) eq. 14, where w = 1

Min-SNR-gamma (2303.09556, section 3.4) asks for the weight min(snr, g) on the squared error of x0.
The error of another prediction is that of x0 times a factor, so the weight is divided by it:

    (2)  sample        w = min(snr, g)
    (3)  epsilon       w = min(snr, g) / snr       = g / max(snr, g)     factor snr
    (4)  v_prediction  w = min(snr, g) / (snr + 1) = min(a, g * b)       factor snr + 1

The right-hand forms are the ones computed: no quotient in them fails at zero SNR, where the
weights are the limits 0, 1 and 0. So the time T - 1 of a zero-terminal-SNR schedule counts for
epsilon, which can be told from pure noise, and not for x0 and v, which cannot.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from medsd_jax.arrays import Latents, Timesteps
from medsd_jax.diffusion.schedule import NoiseSchedule


def min_snr_weights(
    schedule: NoiseSchedule, t: Timesteps, gamma: float | int
) -> Float[Array, " B"]:
    """Compute the min-SNR loss weight of each time, by (2), (3) or (4).

    Args:
        schedule: The noise levels; its prediction_type decides which weight is right.
        t: [B] int32 in [0, T).
        gamma: Upper bound of the SNR, above 0.

    Returns:
        [B] float32, finite and at least 0 at every SNR.
    """
    assert gamma > 0, gamma
    match schedule.prediction_type:
        case "sample":
            return jnp.minimum(schedule.snr(t), gamma)
        case "epsilon":
            return gamma / jnp.maximum(schedule.snr(t), gamma)
        case "v_prediction":
            a = schedule.alphas_cumprod[t]
            return jnp.minimum(a, gamma * (1.0 - a))
    raise AssertionError(schedule.prediction_type)


def diffusion_loss(
    model_output: Latents,
    target: Latents,
    weights: Float[Array, " B"] | None = None,
    mask: Shaped[Array, "#B #h #w #C"] | None = None,
) -> Float[Array, ""]:
    """Average the squared error over pixels, then over the batch (1).

    Args:
        model_output: [B, h, w, C] float, of any precision; the arithmetic is float32.
        target: [B, h, w, C] float.
        weights: [B] float32 factor of each example, or None for 1.
        mask: Which values count, as 0 and 1 (or weights between), of shape [B, h, w, C] or with 1
            for any of these. An example without a value that counts does not count in the batch
            average either, so a padded batch has the loss of its real examples.

    Returns:
        [] float32; 0 where the mask leaves nothing.
    """
    error = jnp.square(model_output.astype(jnp.float32) - target.astype(jnp.float32))
    if mask is None:
        per_example, present = jnp.mean(error, axis=(1, 2, 3)), None
    else:
        mask = jnp.broadcast_to(mask.astype(jnp.float32), error.shape)
        size = jnp.sum(mask, axis=(1, 2, 3))
        present = size > 0
        # where, because a factor 0 would let a masked inf or nan through as nan.
        total = jnp.sum(jnp.where(mask > 0, mask * error, 0.0), axis=(1, 2, 3))
        per_example = total / jnp.where(present, size, 1.0)
    if weights is not None:
        per_example = weights * per_example
    if present is None:
        return jnp.mean(per_example)
    return jnp.sum(per_example) / jnp.maximum(jnp.sum(present), 1)

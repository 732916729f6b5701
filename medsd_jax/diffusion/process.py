"""The forward process and the three ways of saying what the network predicts.

Symbols: a = alphas_cumprod[t] (alpha_bar in DDPM, alpha in DDIM, alpha_t^2 in 2202.00512),
b = 1 - a, x0 clean latents, noise ~ N(0, I), x_t noisy latents, v velocity.

    (1)  x_t   = sqrt(a) x0 + sqrt(b) noise          DDPM (2006.11239) and DDIM eq. 4
    (2)  v     = sqrt(a) noise - sqrt(b) x0          v-prediction (2202.00512), section 4
    (3)  x0    = (x_t - sqrt(b) noise) / sqrt(a)     DDIM (2010.02502) eq. 9; undefined at a = 0
    (4)  x0    = sqrt(a) x_t - sqrt(b) v             2202.00512, section 4
    (5)  noise = (x_t - sqrt(a) x0) / sqrt(b)        (1) solved for the noise
    (6)  noise = sqrt(a) v + sqrt(b) x_t             from (1) and (2)

The coefficients are float32 whatever the dtype of the arrays, so the results are float32 too.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from medsd_jax.arrays import Latents, Timesteps
from medsd_jax.diffusion.schedule import NoiseSchedule


def add_noise(schedule: NoiseSchedule, x0: Latents, noise: Latents, t: Timesteps) -> Latents:
    """Diffuse clean latents to time t in one jump (1).

    Args:
        schedule: The noise levels.
        x0: [B, h, w, C] float, clean latents, multiplied by vae.scaling_factor.
        noise: [B, h, w, C] float, standard normal.
        t: [B] int32 in [0, T).

    Returns:
        [B, h, w, C] float32.
    """
    sqrt_a, sqrt_b = _coefficients(schedule, t)
    return sqrt_a * x0 + sqrt_b * noise


def velocity(schedule: NoiseSchedule, x0: Latents, noise: Latents, t: Timesteps) -> Latents:
    """Compute the velocity (2), the target of v-prediction.

    Args:
        schedule: The noise levels.
        x0: [B, h, w, C] float, clean latents.
        noise: [B, h, w, C] float, the noise that was added to them.
        t: [B] int32 in [0, T).

    Returns:
        [B, h, w, C] float32.
    """
    sqrt_a, sqrt_b = _coefficients(schedule, t)
    return sqrt_a * noise - sqrt_b * x0


def target(schedule: NoiseSchedule, x0: Latents, noise: Latents, t: Timesteps) -> Latents:
    """Return what the network should predict at x_t = add_noise(schedule, x0, noise, t).

    Args:
        schedule: The noise levels; its prediction_type decides.
        x0: [B, h, w, C] float, clean latents.
        noise: [B, h, w, C] float, the noise that was added to them.
        t: [B] int32 in [0, T).

    Returns:
        [B, h, w, C] float32: the noise, the velocity or the clean latents.
    """
    match schedule.prediction_type:
        case "epsilon":
            return noise.astype(jnp.float32)
        case "v_prediction":
            return velocity(schedule, x0, noise, t)
        case "sample":
            return x0.astype(jnp.float32)
    raise AssertionError(schedule.prediction_type)


def predict_x0(
    schedule: NoiseSchedule, model_output: Latents, x_t: Latents, t: Timesteps
) -> Latents:
    """Turn the network's output into its estimate of the clean latents, by (3) or (4).

    For epsilon at zero SNR (a = 0) equation (3) has no answer: x_t holds nothing of x0. As in
    diffusers the division stands, and gives infinities, or nan where x_t equals the output.

    Args:
        schedule: The noise levels; its prediction_type says what the output is.
        model_output: [B, h, w, C] float.
        x_t: [B, h, w, C] float, noisy latents at time t.
        t: [B] int32 in [0, T).

    Returns:
        [B, h, w, C] float32.
    """
    return x0_from(schedule.prediction_type, model_output, x_t, *_coefficients(schedule, t))


def x0_from(
    prediction_type: str,
    model_output: Latents,
    x_t: Latents,
    sqrt_a: Float[ArrayLike, "*#coefficients"],
    sqrt_b: Float[ArrayLike, "*#coefficients"],
) -> Latents:
    """Estimate the clean latents by (3) or (4) at a noise level that need not be a training time.

    Args:
        prediction_type: What the output is: "epsilon", "v_prediction" or "sample".
        model_output: [B, h, w, C] float.
        x_t: [B, h, w, C] float, noisy latents.
        sqrt_a: [] or [B, 1, 1, 1] float32: sqrt(a).
        sqrt_b: of the same shape: sqrt(b).

    Returns:
        [B, h, w, C] float32.
    """
    match prediction_type:
        case "epsilon":
            return (x_t - sqrt_b * model_output) / sqrt_a
        case "v_prediction":
            return sqrt_a * x_t - sqrt_b * model_output
        case "sample":
            return model_output.astype(jnp.float32)
    raise AssertionError(prediction_type)


def predict_noise(
    schedule: NoiseSchedule, model_output: Latents, x_t: Latents, t: Timesteps
) -> Latents:
    """Turn the network's output into its estimate of the noise in x_t, by (5) or (6).

    Args:
        schedule: The noise levels; its prediction_type says what the output is.
        model_output: [B, h, w, C] float.
        x_t: [B, h, w, C] float, noisy latents at time t.
        t: [B] int32 in [0, T).

    Returns:
        [B, h, w, C] float32.
    """
    sqrt_a, sqrt_b = _coefficients(schedule, t)
    match schedule.prediction_type:
        case "epsilon":
            return model_output.astype(jnp.float32)
        case "v_prediction":
            return sqrt_a * model_output + sqrt_b * x_t
        case "sample":
            return (x_t - sqrt_a * model_output) / sqrt_b
    raise AssertionError(schedule.prediction_type)


def _coefficients(
    schedule: NoiseSchedule, t: Timesteps
) -> tuple[Float[Array, "B 1 1 1"], Float[Array, "B 1 1 1"]]:
    """Look up sqrt(a) and sqrt(b), shaped to multiply latents."""
    a = schedule.alphas_cumprod[t][:, None, None, None]
    return jnp.sqrt(a), jnp.sqrt(1.0 - a)

"""The DDIM sampler, one step and the whole loop.

Symbols: a = alphas_cumprod[t], a_prev = alphas_cumprod[t_prev] (final_alpha_cumprod where
t_prev < 0), b = 1 - a, b_prev = 1 - a_prev. The DDIM paper (2010.02502) writes alpha for a.

    (1)  x_prev  = sqrt(a_prev) x0 + sqrt(b_prev - sigma^2) noise_hat + sigma z      DDIM eq. 12
    (2)  sigma^2 = eta^2 (b_prev / b) (1 - a / a_prev)                               DDIM eq. 16
    (3)  b_prev - sigma^2 = b_prev (1 - eta^2 + eta^2 (a b_prev) / (a_prev b))       from (2)

x0 and noise_hat are the network's estimates (process.py), z is fresh noise. eta = 0 is the
deterministic sampler, eta = 1 has the variance of DDPM. (3) is what the code computes: its terms
are not negative for eta <= 1, while b_prev - sigma^2 cancels at zero SNR and eta = 1. What float32
leaves there is up to 6e-8, whose root is 2e-4, or a negative number, whose root is nan.

The step down from t is T // num_steps, as in diffusers, also where the next time visited is another
one ("linspace", and counts that do not divide T). The last step of a "trailing" run, of 7 steps for
example, then ends at time 0 and not at final_alpha_cumprod: the noise of time 0 stays in.
"""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

from medsd_jax.arrays import Latents, Timesteps
from medsd_jax.diffusion.process import predict_noise, predict_x0
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig, sampling_timesteps
from medsd_jax.errors import UserError

logger = logging.getLogger(__name__)


def ddim_step(
    schedule: NoiseSchedule,
    model_output: Latents,
    x_t: Latents,
    t: Int[ArrayLike, ""],
    t_prev: Int[ArrayLike, ""],
    eta: Real[ArrayLike, ""],
    noise: Latents,
    *,
    clip_range: Real[ArrayLike, ""] | None = None,
) -> Latents:
    """Go from time t to time t_prev by (1), (2) and (3).

    Args:
        schedule: The noise levels; its prediction_type says what the network's output is.
        model_output: [B, h, w, C] float, the network's output at (x_t, t).
        x_t: [B, h, w, C] float, latents at time t.
        t: [] int32 in [0, T).
        t_prev: [] int32 below t; negative for the last step.
        eta: [] in [0, 1]. Values above 1 may give nan: the paper's variance is then too large.
        noise: [B, h, w, C] float, standard normal: z. It does not matter at eta = 0.
        clip_range: x0 is clipped to [-clip_range, clip_range], noise_hat stays as it is; None
            clips nothing.

    Returns:
        [B, h, w, C] float32, latents at time t_prev.
    """
    a = schedule.alphas_cumprod[t]
    a_prev = jnp.where(
        t_prev < 0,
        schedule.final_alpha_cumprod,
        schedule.alphas_cumprod[jnp.maximum(t_prev, 0)],
    )
    b, b_prev = 1.0 - a, 1.0 - a_prev

    times = jnp.full(x_t.shape[:1], t, jnp.int32)
    x0 = predict_x0(schedule, model_output, x_t, times)
    noise_hat = predict_noise(schedule, model_output, x_t, times)
    if clip_range is not None:
        x0 = jnp.clip(x0, -clip_range, clip_range)

    eta_squared = jnp.square(jnp.float32(eta))
    sigma = jnp.sqrt(eta_squared * (b_prev / b) * ((a_prev - a) / a_prev))
    direction = jnp.sqrt(b_prev * (1.0 - eta_squared + eta_squared * (a * b_prev) / (a_prev * b)))
    return jnp.sqrt(a_prev) * x0 + direction * noise_hat + sigma * noise


def step_tables(
    config: ScheduleConfig, num_steps: int, max_steps: int
) -> tuple[Int[np.ndarray, " max_steps"], Int[np.ndarray, " max_steps"]]:
    """Tabulate the times of a run, padded so that the compiled sampler fits any number of steps.

    Args:
        config: Gives T, the spacing and the offset.
        num_steps: Number of steps of this run, in [1, max_steps].
        max_steps: Length of the tables: the most steps that the compiled sampler can make.

    Returns:
        timesteps and previous, each [max_steps] int32: the times visited and the times stepped to.
        Entries from num_steps on are padding (0 and -1) and are never used.

    Raises:
        UserError: If num_steps is out of range.
    """
    if num_steps > max_steps:
        raise UserError(f"num_steps={num_steps} is above the limit max_steps={max_steps}; raise it")
    visited = sampling_timesteps(config, num_steps)
    if (
        config.rescale_betas_zero_snr
        and config.prediction_type == "epsilon"
        and visited[0] == config.num_train_timesteps - 1
    ):
        logger.warning(
            "a network that predicts epsilon says nothing about the image at zero SNR, and the "
            "first step divides by zero; use timestep_spacing='leading' or a v_prediction model"
        )
    timesteps = np.zeros(max_steps, np.int32)
    previous = np.full(max_steps, -1, np.int32)
    timesteps[:num_steps] = visited
    previous[:num_steps] = visited - config.num_train_timesteps // num_steps
    return timesteps, previous


def ddim_sample(
    denoise: Callable[[Latents, Timesteps], Latents],
    schedule: NoiseSchedule,
    start: Latents,
    timesteps: Int[ArrayLike, " max_steps"],
    previous: Int[ArrayLike, " max_steps"],
    num_steps: Int[ArrayLike, ""],
    eta: Real[ArrayLike, ""],
    step_noise: Callable[[Int[Array, ""]], Latents],
    *,
    clip_range: Real[ArrayLike, ""] | None = None,
) -> Latents:
    """Denoise `start` in `num_steps` steps.

    Every argument but the two functions may be traced: one compiled program serves all numbers of
    steps up to max_steps. The loop has a traced bound and therefore no reverse-mode gradient.

    Args:
        denoise: Maps (x [B, h, w, C] float32, t [B] int32) to the network's output [B, h, w, C].
        schedule: The noise levels; its prediction_type says what the network's output is.
        start: [B, h, w, C] float, standard normal: latents at the first time.
        timesteps: [max_steps] int32 from `step_tables`.
        previous: [max_steps] int32 from `step_tables`.
        num_steps: [] int32 in [0, max_steps]; 0 returns `start`.
        eta: [] in [0, 1], 0 for the deterministic sampler.
        step_noise: Maps the step's number i [] int32, from 0, to fresh noise [B, h, w, C].
        clip_range: Bound of each step's x0 (`ScheduleConfig.clip_range`), or None.

    Returns:
        [B, h, w, C] float32, clean latents, multiplied by vae.scaling_factor.
    """
    timesteps, previous = jnp.asarray(timesteps), jnp.asarray(previous)

    def step(i: Int[Array, ""], x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        t = timesteps[i]
        model_output = denoise(x, jnp.full(x.shape[:1], t, jnp.int32))
        return ddim_step(
            schedule, model_output, x, t, previous[i], eta, step_noise(i), clip_range=clip_range
        )

    return jax.lax.fori_loop(0, num_steps, step, start.astype(jnp.float32))

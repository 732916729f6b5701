"""The DDIM sampler.

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

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int, Real

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.process import predict_noise, predict_x0
from medsd_jax.diffusion.sampling_loop import Call, History, Sampler
from medsd_jax.diffusion.schedule import (
    NoiseSchedule,
    ScheduleConfig,
    alphas_cumprod,
    sampling_timesteps,
)
from medsd_jax.diffusion.step_table import StepTable
from medsd_jax.errors import UserError


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
    a_prev = schedule.alpha_after(t_prev)
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


class DDIM(Sampler):
    """Columns: t_prev [N] int32 and eta [N]; clip_range [N] where x0 is clipped."""

    takes_eta = True
    clips = True

    def table(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> StepTable:
        """See `Sampler`."""
        times = sampling_timesteps(config, num_steps)[first:]
        a = alphas_cumprod(config)[times]
        if a[0] == 0 and config.prediction_type == "epsilon" and config.clip_range is None:
            raise UserError(
                "a network that predicts epsilon says nothing about the image at zero SNR: ddim's "
                f"first step, at time {times[0]}, would divide by zero and the image be black; use "
                "timestep_spacing='leading', a v_prediction model, or another sampler, such as "
                "euler"
            )
        columns = {"t_prev": times - np.int32(config.num_train_timesteps // num_steps)}
        if config.clip_range is not None:
            columns["clip_range"] = np.full(len(times), config.clip_range, np.float32)
        return StepTable.of(times, np.sqrt(a), np.sqrt(1 - a), columns)

    def step(self, x: Latents, history: History, call: Call) -> tuple[Latents, History]:
        """Goes to t_prev by `ddim_step`; draws no noise where eta is 0."""
        t, t_prev, eta = (call.row[name] for name in ("t", "t_prev", "eta"))
        z = jax.lax.cond(eta > 0.0, call.draw, lambda: jnp.zeros_like(x))
        clip_range = call.row.get("clip_range")
        x = ddim_step(call.schedule, call.output, x, t, t_prev, eta, z, clip_range=clip_range)
        return x, history

"""The PNDM sampler as Stable Diffusion uses it: PLMS, a linear multistep method.

Symbols: e the network's output at (x, t), e_1, e_2, e_3 those of the calls before, newest first,
a = alphas_cumprod[t], a_prev = alphas_cumprod[t_prev] (final_alpha_cumprod where t_prev < 0),
b = 1 - a, b_prev = 1 - a_prev. The PNDM paper (2202.09778) writes alpha_bar for a.

    (1)  x_prev = sqrt(a_prev / a) x
                  - (a_prev - a) e' / (a sqrt(b_prev) + sqrt(a b a_prev))        PNDM eq. 9
    (2)  e' = e                                         call 0
         e' = (e + e_1) / 2                             call 1, again from the first x
         e' = (3 e - e_1) / 2                           call 2
         e' = (23 e - 16 e_1 + 5 e_2) / 12              call 3
         e' = (55 e - 59 e_1 + 37 e_2 - 9 e_3) / 24     later calls             PNDM eq. 12

Where the network predicts v, (2) mixes the v and (1) takes the noise that follows from the mixture
at (x, t), as in diffusers. The paper starts with Runge-Kutta steps of four calls each; Stable
Diffusion (skip_prk_steps) replaces them by a step that is corrected once: call 0 steps from the
first time to the second, call 1 looks at where that led and repeats the step with the mean of both
outputs. So n steps take n + 1 calls, and one step takes one.

The step down from t is T // num_steps, as in diffusers and in ddim.py. A run that starts from a
noised image warms up in the same way at its own first time. diffusers begins one time earlier
there, counts the repeated time as a step of its own and so skips the step after it.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.process import predict_noise
from medsd_jax.diffusion.sampling_loop import Call, History, Sampler
from medsd_jax.diffusion.schedule import (
    NoiseSchedule,
    ScheduleConfig,
    alphas_cumprod,
    sampling_timesteps,
)
from medsd_jax.diffusion.step_table import StepTable
from medsd_jax.errors import UserError

_MIXTURES = np.asarray(
    [
        [1, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ],
    np.float32,
)
"""(2): weights of e, e_1, e_2, e_3 in calls 0, 1, 2, 3 and 4."""


def transfer(
    schedule: NoiseSchedule,
    x: Latents,
    noise_hat: Latents,
    t: Int[ArrayLike, ""],
    t_prev: Int[ArrayLike, ""],
) -> Latents:
    """Go from time t to time t_prev by (1).

    Args:
        schedule: The noise levels.
        x: [B, h, w, C] float, latents at time t.
        noise_hat: [B, h, w, C] float, the estimate of their noise: e'.
        t: [] int32 in [0, T).
        t_prev: [] int32 below t; negative for the last step.

    Returns:
        [B, h, w, C] float32, latents at time t_prev.
    """
    a, a_prev = schedule.alphas_cumprod[t], schedule.alpha_after(t_prev)
    b, b_prev = 1.0 - a, 1.0 - a_prev
    scale = a * jnp.sqrt(b_prev) + jnp.sqrt(a * b * a_prev)
    return jnp.sqrt(a_prev / a) * x - (a_prev - a) / scale * noise_hat


class PNDM(Sampler):
    """PLMS with the noise levels as tables.

    Columns: t_from and t_prev [N] int32, the times that (1) goes between; mixture [N, 4], the
    weights of (2); corrects [N] bool, whether the call repeats the step of the one before.
    """

    def table(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> StepTable:
        """See `Sampler`."""
        if config.prediction_type == "sample":
            raise UserError(
                "sampler 'pndm' mixes predictions of the noise or of v, prediction_type='sample' "
                "gives neither; use another sampler, such as ddim"
            )
        if config.rescale_betas_zero_snr:
            raise UserError(
                "sampler 'pndm' divides by the signal of the first time, of which "
                "rescale_betas_zero_snr=True leaves nothing; use another sampler, such as ddim"
            )
        visited = sampling_timesteps(config, num_steps)[first:]
        down = np.int32(config.num_train_timesteps // num_steps)
        times = np.insert(visited, 1, visited[1:2])  # call 1 looks at the second time already
        corrects = np.arange(len(times)) == 1
        columns = {
            "t_from": np.where(corrects, times + down, times),
            "t_prev": np.where(corrects, times, times - down),
            "mixture": _MIXTURES[np.arange(len(times)).clip(max=len(_MIXTURES) - 1)],
            "corrects": corrects,
        }
        a = alphas_cumprod(config)[times]
        return StepTable.of(times, np.sqrt(a), np.sqrt(1 - a), columns)

    def history(self, x: Latents) -> History:
        """The outputs e_1, e_2, e_3 and the state of the call before."""
        zeros = jnp.zeros_like(x)
        return (zeros, zeros, zeros), x

    def step(self, x: Latents, history: History, call: Call) -> tuple[Latents, History]:
        """Goes to t_prev by (1) and (2)."""
        e, (earlier, x_before) = call.output.astype(jnp.float32), history
        corrects, w, t_from = (call.row[name] for name in ("corrects", "mixture", "t_from"))
        x_from = jnp.where(corrects, x_before, x)
        mixed = w[0] * e + sum(w[k + 1] * earlier[k] for k in range(3))
        times = jnp.full(x.shape[:1], t_from)
        noise_hat = predict_noise(call.schedule, mixed, x_from, times)
        result = transfer(call.schedule, x_from, noise_hat, t_from, call.row["t_prev"])
        # The output of call 1 corrects one step and is no point of the multistep formula.
        kept = tuple(
            jnp.where(corrects, old, new)
            for old, new in zip(earlier, (e, *earlier[:2]), strict=True)
        )
        return result, (kept, x)

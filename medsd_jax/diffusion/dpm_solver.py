"""The sampler DPM-Solver++(2M): second order from one network call per step.

Symbols, for the step from level i - 1 to level i: alpha and sigma the signal and noise of the
state, alpha^2 + sigma^2 = 1; x0_1 the network's estimate of x0 at (x_{i-1}, t_{i-1}), x0_2 that of
the step before. All from 2211.01095.

    (1)  lambda_i = log(alpha_i / sigma_i),  h_i = lambda_i - lambda_{i-1},  r_i = h_{i-1} / h_i
    (2)  D_i = (1 + 1 / (2 r_i)) x0_1 - 1 / (2 r_i) x0_2                         algorithm 2
         D_i = x0_1                                                              first order
    (3)  x_i = (sigma_i / sigma_{i-1}) x_{i-1} + alpha_i (1 - e^{-h_i}) D_i      algorithm 2

This is the midpoint form. The first step is of first order, for there is no x0_2 yet; so is the
last one where it ends at clean data (sigma 0, h infinite) or the run has fewer than 15 steps, as
diffusers' lower_order_final. What depends on the levels alone is tabulated in float64: 1 - e^{-h}
and 1 / r are quotients of small differences.

A run ends where final_sigmas_type of the schedule says: "zero" at clean data, "sigma_min" at the
noise of time 0.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.process import x0_from
from medsd_jax.diffusion.sampling_loop import Call, History, Sampler
from medsd_jax.diffusion.schedule import ScheduleConfig, sampling_timesteps
from medsd_jax.diffusion.sigmas import alphas_of, karras_sigmas, sigmas_at
from medsd_jax.diffusion.step_table import StepTable
from medsd_jax.errors import UserError

_FEW_STEPS = 15
"""Runs with fewer steps end with one of first order."""


@dataclasses.dataclass(frozen=True)
class DPMSolverPlusPlus2M(Sampler):
    """DPM-Solver++(2M) over the levels of the schedule's spacing, or over Karras'.

    Columns, [N] float32 each: alpha and sigma, those of i - 1; shrink = sigma_i / sigma_{i-1};
    gain = alpha_i (1 - e^{-h_i}); half_inverse_r = 1 / (2 r_i), 0 in steps of first order.

    Attributes:
        karras: Whether the levels are Karras'.
    """

    karras: bool

    def table(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> StepTable:
        """See `Sampler`."""
        if self.karras:
            times, levels = karras_sigmas(config, num_steps)
        else:
            times = spaced_times(config, num_steps)
            levels = sigmas_at(config, times)
        times, levels = times[first:], levels[first:]
        n = len(times)

        alpha = alphas_of(levels)
        sigma = levels * alpha
        ratio = levels[1:].astype(np.float64) / levels[:-1]  # e^{-h_i}
        h = -np.log(ratio, where=ratio > 0, out=np.full(n, -np.inf))
        ends_low = num_steps < _FEW_STEPS or levels[-1] == 0
        second_order = (np.arange(n) > 0) & ~((np.arange(n) == n - 1) & ends_low)
        half_inverse_r = np.zeros(n)
        for i in np.flatnonzero(second_order):
            half_inverse_r[i] = h[i] / (2 * h[i - 1])
        columns = {
            "alpha": alpha[:-1],
            "sigma": sigma[:-1],
            "shrink": sigma[1:] / sigma[:-1],
            "gain": alpha[1:] * (1 - ratio),
            "half_inverse_r": half_inverse_r,
        }
        columns = {name: column.astype(np.float32) for name, column in columns.items()}
        return StepTable.of(times.astype(np.int32), alpha[:-1], sigma[:-1], columns)

    def history(self, x: Latents) -> History:
        """x0_2."""
        return jnp.zeros_like(x)

    def step(self, x: Latents, history: History, call: Call) -> tuple[Latents, History]:
        """Goes to the next level by (2) and (3)."""
        row, kind = call.row, call.schedule.prediction_type
        x0_1 = x0_from(kind, call.output, x, row["alpha"], row["sigma"])
        d = (1 + row["half_inverse_r"]) * x0_1 - row["half_inverse_r"] * history
        return row["shrink"] * x + row["gain"] * d, x0_1


def spaced_times(config: ScheduleConfig, num_steps: int) -> Float[np.ndarray, " n"]:
    """Chooses times: as if for one step more, without its last time, as in diffusers.

    "trailing" spacing ends above time 0 by itself and stays as it is.
    """
    size = config.num_train_timesteps
    if config.timestep_spacing == "trailing":
        return sampling_timesteps(config, num_steps).astype(np.float64)
    if not 1 <= num_steps < size:
        raise UserError(
            f"num_steps={num_steps} of sampler dpmpp_2m with timestep_spacing="
            f"{config.timestep_spacing!r} must be between 1 and {size - 1}"
        )
    return sampling_timesteps(config, num_steps + 1)[:-1].astype(np.float64)

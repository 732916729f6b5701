"""Euler's method for the probability flow, in the variance-exploding form.

Symbols: sigma the noise level (sigmas.py), x = x0 + sigma z the state, f the network,
alpha = 1 / sqrt(1 + sigma^2).

    (1)  x0_hat = estimate of x0 from f(alpha x, t)                2206.00364 eq. 7, by process.py
    (2)  d      = (x - x0_hat) / sigma                             2206.00364 algorithm 1, line 4
    (3)  x_next = x + (sigma_next - sigma) d                       line 5

The network knows variance-preserving latents: it sees alpha x. With "linspace" spacing times are
not rounded, as in diffusers: the network is told fractions of a time, and sigma is interpolated.

With "leading" spacing the first state is sqrt(1 + sigma^2) z, as large as a noised picture, else
sigma z, as in diffusers. A run ends where final_sigmas_type of the schedule says.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.process import x0_from
from medsd_jax.diffusion.sampling_loop import History, Plan, Row
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig, sampling_timesteps
from medsd_jax.diffusion.sigmas import alphas_of, sigmas_at


class Euler:
    """The step rule. Columns, [N] float32 each: alpha, sigma, sigma_next."""

    takes_eta = False

    def plan(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> Plan:
        """See `StepRule`."""
        times, sigmas = euler_levels(config, num_steps, first)
        return euler_plan(config, times, sigmas, {"sigma_next": sigmas[1:]})

    def history(self, x: Latents) -> History:
        """Nothing."""
        return ()

    def model_input(self, x: Latents, row: Row) -> Latents:
        """Alpha x."""
        return row["alpha"] * x

    def step(
        self,
        schedule: NoiseSchedule,
        model_output: Latents,
        x: Latents,
        row: Row,
        history: History,
        draw: Callable[[], Latents],
    ) -> tuple[Latents, History]:
        """Goes to sigma_next by (3)."""
        d = derivative(schedule, model_output, x, row)
        return x + (row["sigma_next"] - row["sigma"]) * d, history


def derivative(schedule: NoiseSchedule, model_output: Latents, x: Latents, row: Row) -> Latents:
    """Computes d of (2) from the output at (alpha x, t)."""
    alpha, sigma = row["alpha"], row["sigma"]
    x0_hat = x0_from(schedule.prediction_type, model_output, alpha * x, alpha, alpha * sigma)
    return (x - x0_hat) / sigma


def euler_levels(
    config: ScheduleConfig, num_steps: int, first: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n_and_last"]]:
    """Chooses the times [n] and levels [n + 1] of a run, without its `first` steps; float32."""
    times = sampling_timesteps(config, num_steps).astype(np.float32)
    if config.timestep_spacing == "linspace":
        last = config.num_train_timesteps - 1
        times = np.linspace(0, last, num_steps, dtype=np.float32)[::-1]
    return times[first:], sigmas_at(config, times)[first:]


def euler_plan(
    config: ScheduleConfig,
    times: Float[np.ndarray, " n"],
    sigmas: Float[np.ndarray, " n_and_last"],
    columns: dict[str, np.ndarray],
) -> Plan:
    """Makes the plan of a variance-exploding sampler: adds alpha, sigma and the first state."""
    sigma, alpha = sigmas[:-1], alphas_of(sigmas[:-1]).astype(np.float32)
    leading = config.timestep_spacing == "leading"
    return Plan.of(
        times,
        np.ones_like(sigma),
        sigma,
        {"alpha": alpha, "sigma": sigma, **columns},
        start_scale=float(1 / alpha[0] if leading else sigma[0]),
    )

"""Euler's method for the probability flow, in the variance-exploding form.

Symbols: sigma the noise level, x = x0 + sigma z the state, f the network,
alpha = 1 / sqrt(1 + sigma^2). Levels, times and the first state: variance_exploding.py.

    (1)  x0_hat = estimate of x0 from f(alpha x, t)                2206.00364 eq. 7, by process.py
    (2)  d      = (x - x0_hat) / sigma                             2206.00364 algorithm 1, line 4
    (3)  x_next = x + (sigma_next - sigma) d                       line 5
"""

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.process import x0_from
from medsd_jax.diffusion.sampling_loop import Call, History
from medsd_jax.diffusion.schedule import ScheduleConfig
from medsd_jax.diffusion.step_table import StepTable
from medsd_jax.diffusion.variance_exploding import VarianceExploding, noise_levels, table_of_levels


class Euler(VarianceExploding):
    """Adds the column sigma_next [N] float32."""

    def table(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> StepTable:
        """See `Sampler`."""
        times, sigmas = noise_levels(config, num_steps, first)
        return table_of_levels(config, times, sigmas, sigma_next=sigmas[1:])

    def step(self, x: Latents, history: History, call: Call) -> tuple[Latents, History]:
        """Goes to sigma_next by (3)."""
        d = derivative(x, call)
        return x + (call.row["sigma_next"] - call.row["sigma"]) * d, history


def derivative(x: Latents, call: Call) -> Latents:
    """Computes d of (2) from the output at (alpha x, t)."""
    alpha, sigma = call.row["alpha"], call.row["sigma"]
    kind = call.schedule.prediction_type
    x0_hat = x0_from(kind, call.output, alpha * x, alpha, alpha * sigma)
    return (x - x0_hat) / sigma

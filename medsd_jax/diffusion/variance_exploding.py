"""What the samplers share whose state grows with its noise.

Symbols: sigma the noise level (sigmas.py), x = x0 + sigma z the state,
alpha = 1 / sqrt(1 + sigma^2).

The network knows variance-preserving latents: it sees alpha x. With "linspace" spacing times are
not rounded, as in diffusers: the network is given fractions of a time, and sigma is interpolated.

With "leading" spacing the first state is sqrt(1 + sigma^2) z, as large as a noised image, else
sigma z, as in diffusers. A run ends where final_sigmas_type of the schedule says.
"""

import numpy as np
from jaxtyping import Float

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.sampling_loop import Row, Sampler
from medsd_jax.diffusion.schedule import ScheduleConfig, sampling_timesteps
from medsd_jax.diffusion.sigmas import alphas_of, sigmas_at
from medsd_jax.diffusion.step_table import StepTable


class VarianceExploding(Sampler):
    """A sampler of x = x0 + sigma z. Columns, [N] float32 each: alpha, sigma, and its own."""

    def model_input(self, x: Latents, row: Row) -> Latents:
        """Alpha x."""
        return row["alpha"] * x


def noise_levels(
    config: ScheduleConfig, num_steps: int, first: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n_and_last"]]:
    """Chooses the times [n] and levels [n + 1] of a run, without its `first` steps; float32."""
    times = sampling_timesteps(config, num_steps).astype(np.float32)
    if config.timestep_spacing == "linspace":
        last = config.num_train_timesteps - 1
        times = np.linspace(0, last, num_steps, dtype=np.float32)[::-1]
    return times[first:], sigmas_at(config, times)[first:]


def table_of_levels(
    config: ScheduleConfig,
    times: Float[np.ndarray, " n"],
    sigmas: Float[np.ndarray, " n_and_last"],
    **columns: np.ndarray,
) -> StepTable:
    """Makes the table of a run over these levels: adds alpha, sigma and the first state.

    Args:
        config: Its timestep_spacing says how large the first state is.
        times: [n] float32, descending.
        sigmas: [n + 1] float32, descending.
        **columns: The sampler's own, [n] each; cast to float32.
    """
    sigma, alpha = sigmas[:-1], alphas_of(sigmas[:-1]).astype(np.float32)
    own = {name: column.astype(np.float32) for name, column in columns.items()}
    return StepTable.of(
        times,
        np.ones_like(sigma),
        sigma,
        {"alpha": alpha, "sigma": sigma, **own},
        start_scale=float(1 / alpha[0] if config.timestep_spacing == "leading" else sigma[0]),
    )

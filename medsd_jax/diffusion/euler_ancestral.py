"""Euler's method with ancestral noise: each step goes too far down, and noise brings it back up.

Symbols as in euler.py; z fresh noise.

    (1)  sigma_up^2   = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2     DDPM's posterior
    (2)  sigma_down^2 = sigma_next^2 - sigma_up^2 = sigma_next^4 / sigma^2
    (3)  x_next       = x + (sigma_down - sigma) d + sigma_up z             k-diffusion

The last step ends at clean data, whatever final_sigmas_type says, as in diffusers.
"""

import dataclasses

import numpy as np

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.euler import derivative
from medsd_jax.diffusion.sampling_loop import Call, History
from medsd_jax.diffusion.schedule import ScheduleConfig
from medsd_jax.diffusion.step_table import StepTable
from medsd_jax.diffusion.variance_exploding import VarianceExploding, noise_levels, table_of_levels
from medsd_jax.errors import UserError


class EulerAncestral(VarianceExploding):
    """Adds the columns sigma_down and sigma_up, [N] float32 each."""

    def table(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> StepTable:
        """See `Sampler`."""
        if config.prediction_type == "sample":
            raise UserError(
                "sampler 'euler_ancestral' is not defined for prediction_type='sample'; use "
                "another sampler, such as euler"
            )
        config = dataclasses.replace(config, final_sigmas_type="zero")
        times, sigmas = noise_levels(config, num_steps, first)
        sigma, sigma_next = sigmas[:-1].astype(np.float64), sigmas[1:].astype(np.float64)
        sigma_up = sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2)
        sigma_down = sigma_next**2 / sigma
        return table_of_levels(config, times, sigmas, sigma_down=sigma_down, sigma_up=sigma_up)

    def step(self, x: Latents, history: History, call: Call) -> tuple[Latents, History]:
        """Goes to sigma_next by (3)."""
        d = derivative(x, call)
        down = call.row["sigma_down"] - call.row["sigma"]
        return x + down * d + call.row["sigma_up"] * call.draw(), history

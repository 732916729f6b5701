"""Euler's method with ancestral noise: each step goes too far down, and noise brings it back up.

Symbols as in euler.py; z fresh noise.

    (1)  sigma_up^2   = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2     DDPM's posterior
    (2)  sigma_down^2 = sigma_next^2 - sigma_up^2 = sigma_next^4 / sigma^2
    (3)  x_next       = x + (sigma_down - sigma) d + sigma_up z             k-diffusion

The last step ends at clean data, whatever final_sigmas_type says, as in diffusers.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.euler import derivative, euler_levels, euler_plan
from medsd_jax.diffusion.sampling_loop import History, Plan, Row
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medsd_jax.errors import UserError


class EulerAncestral:
    """The step rule. Columns, [N] float32 each: alpha, sigma, sigma_down, sigma_up."""

    takes_eta = False

    def plan(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> Plan:
        """See `StepRule`."""
        if config.prediction_type == "sample":
            raise UserError(
                "sampler 'euler_ancestral' is not defined for prediction_type='sample'; use "
                "another sampler, such as euler"
            )
        config = dataclasses.replace(config, final_sigmas_type="zero")
        times, sigmas = euler_levels(config, num_steps, first)
        sigma, sigma_next = sigmas[:-1].astype(np.float64), sigmas[1:].astype(np.float64)
        sigma_up = sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2)
        columns = {"sigma_down": sigma_next**2 / sigma, "sigma_up": sigma_up}
        columns = {name: column.astype(np.float32) for name, column in columns.items()}
        return euler_plan(config, times, sigmas, columns)

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
        down = row["sigma_down"] - row["sigma"]
        return x + down * d + row["sigma_up"] * draw(), history

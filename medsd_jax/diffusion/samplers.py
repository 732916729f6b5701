"""The samplers by name, and the plan of one run."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.diffusion.ddim import DDIM
from medsd_jax.diffusion.dpm_solver import DPMSolverPlusPlus2M
from medsd_jax.diffusion.euler import Euler
from medsd_jax.diffusion.euler_ancestral import EulerAncestral
from medsd_jax.diffusion.pndm import PNDM
from medsd_jax.diffusion.sampling_loop import Plan, StepRule
from medsd_jax.diffusion.schedule import ScheduleConfig
from medsd_jax.errors import UserError

SAMPLERS: Mapping[str, StepRule] = dict(
    zip(
        SAMPLER_NAMES,
        (
            DDIM(),
            PNDM(),
            DPMSolverPlusPlus2M(karras=False),
            DPMSolverPlusPlus2M(karras=True),
            Euler(),
            EulerAncestral(),
        ),
        strict=True,
    )
)
"""Name -> step rule."""


def make_plan(
    sampler: str,
    config: ScheduleConfig,
    num_steps: int,
    max_steps: int,
    *,
    eta: float = 0.0,
    strength: float = 1.0,
) -> Plan:
    """Plans one run on the host.

    Args:
        sampler: A name of `SAMPLERS`.
        config: The noise process and the choice of times.
        num_steps: Of a run from noise, in [1, max_steps], and at most the training times.
        max_steps: The most steps that the compiled program can make.
        eta: In [0, 1], amount of fresh noise of DDIM; 0 for all others.
        strength: In (0, 1]: of the num_steps steps the last int(num_steps * strength) are made.

    Returns:
        The plan, padded to max_steps + 1 calls, which is what PNDM needs at most.

    Raises:
        UserError: A value is out of its range, or the sampler cannot work with it.
    """
    check_sampler(sampler)
    rule = SAMPLERS[sampler]
    most = min(max_steps, config.num_train_timesteps)
    if not isinstance(num_steps, int | np.integer) or not 1 <= num_steps <= most:
        raise UserError(f"num_steps = {num_steps} must be a whole number between 1 and {most}")
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta = {eta} must lie between 0 (deterministic) and 1")
    if eta and not rule.takes_eta:
        raise UserError(f"eta = {eta} is a setting of sampler ddim; sampler {sampler} has none")
    if config.clip_sample and sampler != "ddim":
        raise UserError(f"clip_sample=True is for sampler ddim; sampler {sampler} never clips")
    if not 0.0 < strength <= 1.0:
        raise UserError(f"strength = {strength} must be above 0 and at most 1 (all steps)")
    made = min(int(num_steps * strength), num_steps)
    if made < 1:
        raise UserError(
            f"strength = {strength} leaves no step of num_steps = {num_steps}; raise one of them"
        )
    plan = rule.plan(config, num_steps, num_steps - made)
    if rule.takes_eta:
        columns = {**plan.columns, "eta": np.full(len(plan.times), eta, np.float32)}
        plan = dataclasses.replace(plan, columns=columns)
    return plan.padded(max_steps + 1)


def check_sampler(sampler: str) -> None:
    """Raises UserError for an unknown name."""
    if sampler not in SAMPLERS:
        raise UserError(f"sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")

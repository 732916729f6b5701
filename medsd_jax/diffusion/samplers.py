"""The samplers by name, and the step table of one run."""

from collections.abc import Mapping

import numpy as np

from medsd_jax.diffusion.ddim import DDIM
from medsd_jax.diffusion.dpm_solver import DPMSolverPlusPlus2M
from medsd_jax.diffusion.euler import Euler
from medsd_jax.diffusion.euler_ancestral import EulerAncestral
from medsd_jax.diffusion.pndm import PNDM
from medsd_jax.diffusion.sampling_loop import Sampler
from medsd_jax.diffusion.schedule import ScheduleConfig
from medsd_jax.diffusion.step_table import StepTable
from medsd_jax.errors import UserError

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": DDIM(),
    "pndm": PNDM(),
    "dpmpp_2m": DPMSolverPlusPlus2M(karras=False),
    "dpmpp_2m_karras": DPMSolverPlusPlus2M(karras=True),
    "euler": Euler(),
    "euler_ancestral": EulerAncestral(),
}
"""Name -> sampler. `SAMPLER_NAMES` of config.py repeats the names, for those that import no jax."""


def make_step_table(
    sampler: str,
    config: ScheduleConfig,
    num_steps: int,
    max_steps: int,
    *,
    eta: float = 0.0,
    strength: float = 1.0,
) -> StepTable:
    """Tabulates one run on the host.

    Args:
        sampler: A name of `SAMPLERS`.
        config: The noise process and the choice of times.
        num_steps: Of a run from noise, in [1, max_steps], and at most the training times.
        max_steps: The most steps that the compiled program can make.
        eta: In [0, 1], amount of fresh noise of DDIM; 0 for all others.
        strength: In (0, 1]: of the num_steps steps the last int(num_steps * strength) are made.

    Returns:
        The table, padded to max_steps + 1 calls, which is what PNDM needs at most.

    Raises:
        UserError: A value is out of its range, or the sampler cannot work with it.
    """
    check_sampler(sampler)
    chosen = SAMPLERS[sampler]
    most = min(max_steps, config.num_train_timesteps)
    if not isinstance(num_steps, int | np.integer) or not 1 <= num_steps <= most:
        raise UserError(f"num_steps = {num_steps} must be a whole number between 1 and {most}")
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta = {eta} must lie between 0 (deterministic) and 1")
    if eta and not chosen.takes_eta:
        raise UserError(f"eta = {eta} is a setting of sampler ddim; sampler {sampler} has none")
    if config.clip_sample and not chosen.clips:
        raise UserError(f"clip_sample=True is for sampler ddim; sampler {sampler} never clips")
    if not 0.0 < strength <= 1.0:
        raise UserError(f"strength = {strength} must be above 0 and at most 1 (all steps)")
    made = min(int(num_steps * strength), num_steps)
    if made < 1:
        raise UserError(
            f"strength = {strength} leaves no step of num_steps = {num_steps}; raise one of them"
        )
    table = chosen.table(config, num_steps, num_steps - made)
    if chosen.takes_eta:
        table = table.with_column("eta", eta)
    return table.padded(max_steps + 1)


def check_sampler(sampler: str) -> None:
    """Raises UserError for an unknown name."""
    if sampler not in SAMPLERS:
        raise UserError(f"sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")

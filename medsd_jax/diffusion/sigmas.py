"""Noise levels counted by sigma, the noise for each unit of signal, and Karras' choice of them.

Symbols: a = alphas_cumprod[t], x_0 clean latents, z unit noise.

    (1)  sigma = sqrt((1 - a) / a),  x = x_0 + sigma z          variance-exploding, 2206.00364
    (2)  alpha = 1 / sqrt(1 + sigma^2),  alpha x = alpha x_0 + alpha sigma z
                                                                variance-preserving: alpha^2 = a
    (3)  sigma_i = (sigma_max^(1/7) + i / (n - 1) (sigma_min^(1/7) - sigma_max^(1/7)))^7
                                                                2206.00364 eq. 5, i = 0 .. n - 1

At zero SNR sigma is infinite: as in diffusers a is 2^-24 there, sigma 4096.
"""

import numpy as np
from jaxtyping import Float

from medsd_jax.diffusion.schedule import ScheduleConfig, alphas_cumprod
from medsd_jax.errors import UserError

_MIN_ALPHA_CUMPROD = 2.0**-24
_RHO = 7.0


def sigma_table(config: ScheduleConfig) -> Float[np.ndarray, " T"]:
    """Tabulates (1) for all training times, float32 and increasing."""
    a = alphas_cumprod(config)
    if config.rescale_betas_zero_snr:
        a[-1] = _MIN_ALPHA_CUMPROD
    return np.sqrt((1 - a) / a)


def sigmas_at(
    config: ScheduleConfig, times: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n_and_last"]:
    """Looks the levels of some times up, and adds the one at which a run ends.

    Args:
        config: The noise process; its final_sigmas_type says where a run ends.
        times: [n], descending, in [0, T - 1]; levels between two times are interpolated.

    Returns:
        [n + 1] float32, descending.

    Raises:
        UserError: A step would lead nowhere.
    """
    table = sigma_table(config)
    sigmas = np.interp(times, np.arange(len(table)), table)
    if (np.diff(sigmas) >= 0).any():
        raise UserError(
            f"{len(times)} steps with timestep_spacing={config.timestep_spacing!r} visit a time "
            f"twice; take fewer steps than num_train_timesteps={config.num_train_timesteps}"
        )
    return np.append(sigmas, _final_sigma(config)).astype(np.float32)


def karras_sigmas(
    config: ScheduleConfig, num_steps: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n_and_last"]]:
    """Chooses levels by (3); timestep_spacing and steps_offset have no say in it.

    Args:
        config: The noise process; sigma_max and sigma_min are those of its last and first time.
        num_steps: n, at least 1.

    Returns:
        times [n] in [0, T - 1], whole numbers but not always distinct: the nearest to the levels
        by log sigma (below them for the cosine schedule, as in diffusers); and the levels
        [n + 1] float32, the last one that at which a run ends.
    """
    table = sigma_table(config)
    low, high = (float(sigma) ** (1 / _RHO) for sigma in table[[0, -1]])
    sigmas = (high + np.linspace(0, 1, num_steps) * (low - high)) ** _RHO
    times = np.interp(np.log(sigmas), np.log(table), np.arange(len(table)))
    rounded = np.floor(times) if config.beta_schedule == "squaredcos_cap_v2" else np.round(times)
    return rounded, np.append(sigmas, _final_sigma(config)).astype(np.float32)


def alphas_of(sigmas: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Computes alpha of (2) in float64."""
    return 1 / np.sqrt(1 + np.square(sigmas, dtype=np.float64))


def _final_sigma(config: ScheduleConfig) -> float:
    return 0.0 if config.final_sigmas_type == "zero" else float(sigma_table(config)[0])

"""The noise schedule: how much of an image is left at every diffusion time.

Symbols: beta[t] variance added at time t, T the number of times, a[t] = alphas_cumprod[t] (the
papers' alpha_bar).

    (1)  a[t] = prod_{s <= t} (1 - beta[s])                    DDPM (2006.11239), eq. 4
    (2)  beta[t] linear in t                                   "linear", DDPM section 4
    (3)  sqrt(beta[t]) linear in t                             "scaled_linear", latent diffusion
    (4)  f(u) = cos((u + 0.008) / 1.008 * pi / 2)^2,
         beta[t] = min(1 - f((t + 1) / T) / f(t / T), 0.999)   squaredcos_cap_v2, 2102.09672 eq. 17
    (5)  r[t] = (sqrt(a[t]) - sqrt(a[T-1])) * sqrt(a[0]) / (sqrt(a[0]) - sqrt(a[T-1])),
         a'[t] = r[t]^2                                        zero SNR at T - 1, 2305.08891 alg. 1
    (6)  snr[t] = a[t] / (1 - a[t])                            signal-to-noise ratio, 2305.08891

Sampling times for n steps (2305.08891, table 2), before they are put in descending order:

    (7)  "leading"   i * (T // n) + steps_offset
    (8)  "linspace"  round(i * (T - 1) / (n - 1))              i = 0 .. n - 1
    (9)  "trailing"  round(T - i * T / n) - 1
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from medsd_jax.arrays import Timesteps
from medsd_jax.diffusion.config import ScheduleConfig
from medsd_jax.errors import UserError

__all__ = ["NoiseSchedule", "ScheduleConfig", "alphas_cumprod", "sampling_timesteps"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of training: a pytree of two arrays and two static values.

    Attributes:
        alphas_cumprod: [T] float32 in [0, 1], decreasing: a of the equations above.
        final_alpha_cumprod: [] float32, what stands for a at times below 0.
        prediction_type: What the network predicts: "epsilon", "v_prediction" or "sample".
        num_train_timesteps: T.
    """

    # Untyped, because JAX rebuilds pytrees with shapes, shardings or booleans for leaves.
    alphas_cumprod: Any
    final_alpha_cumprod: Any
    prediction_type: str = dataclasses.field(metadata={"static": True})
    num_train_timesteps: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_config(cls, config: ScheduleConfig) -> "NoiseSchedule":
        """Tabulate the schedule of `config`."""
        table = alphas_cumprod(config)
        return cls(
            alphas_cumprod=jnp.asarray(table),
            final_alpha_cumprod=jnp.float32(1.0 if config.set_alpha_to_one else table[0]),
            prediction_type=config.prediction_type,
            num_train_timesteps=config.num_train_timesteps,
        )

    def alpha_after(self, t_prev: Int[ArrayLike, ""]) -> Float[Array, ""]:
        """Look up a at the time [] int32 that a step goes to, which may lie below 0."""
        return jnp.where(
            t_prev < 0, self.final_alpha_cumprod, self.alphas_cumprod[jnp.maximum(t_prev, 0)]
        )

    def snr(self, timesteps: Timesteps) -> Float[Array, " B"]:
        """Look up the signal-to-noise ratio (6).

        Args:
            timesteps: [B] int32 in [0, T).

        Returns:
            [B] float32, at least 0; exactly 0 at T - 1 of a zero-terminal-SNR schedule.
        """
        alpha = self.alphas_cumprod[timesteps]
        return alpha / (1.0 - alpha)


def alphas_cumprod(config: ScheduleConfig) -> np.ndarray:
    """Tabulate (1) as [T] float32.

    The betas, 1 - beta and the rescaling are rounded to float32 where diffusers rounds them: the
    weights are shared with it, and small differences grow. Near t = 0 a unit in the last place of a
    is 1e-3 of the cosine schedule's 1 - a. At its end, where 1 - beta is 0.001, float64 betas would
    move a by 1.3e-5 of itself, which a step multiplies by up to 1 / sqrt(a).
    """
    alphas = 1 - _betas(config)
    if config.rescale_betas_zero_snr:
        alphas = _rescale_zero_terminal_snr(alphas)
    return _cumprod(alphas)


def _betas(config: ScheduleConfig) -> np.ndarray:
    """Tabulate (2), (3) or (4) as [T] float32."""
    start, end, size = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.trained_betas is not None:
        return np.asarray(config.trained_betas, np.float32)
    if config.beta_schedule == "linear":
        return np.linspace(start, end, size, dtype=np.float32)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), size, dtype=np.float32) ** 2
    assert config.beta_schedule == "squaredcos_cap_v2", config.beta_schedule
    level = np.cos((np.arange(size + 1) / size + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], 0.999).astype(np.float32)


def _rescale_zero_terminal_snr(alphas: np.ndarray) -> np.ndarray:
    """Apply (5) to [T] factors 1 - beta; float32 throughout for the reason given above."""
    root = np.sqrt(_cumprod(alphas))
    first, last = root[0], root[-1]
    cumprod = ((root - last) * (first / (first - last))) ** 2
    rescaled = np.concatenate([cumprod[:1], cumprod[1:] / cumprod[:-1]])
    # Through beta and back, as diffusers does: rounding makes this other than `rescaled`.
    return 1 - (1 - rescaled)


def _cumprod(alphas: np.ndarray) -> np.ndarray:
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def sampling_timesteps(config: ScheduleConfig, num_steps: int) -> np.ndarray:
    """Choose the times that a sampler of `num_steps` steps visits, by (7), (8) or (9).

    Args:
        config: Gives T, the spacing and the offset.
        num_steps: Number of network evaluations, in [1, T].

    Returns:
        [num_steps] int32 in [0, T), descending.

    Raises:
        UserError: If num_steps is out of range, or if the offset leads beyond the last time.
    """
    size = config.num_train_timesteps
    if not 1 <= num_steps <= size:
        raise UserError(f"num_steps={num_steps} must be between 1 and {size}, the training times")
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, size - 1, num_steps).round()[::-1]
    elif config.timestep_spacing == "trailing":
        # For 62 of the 1000 possible counts (61 is the first) rounding errors of arange add a
        # time of -1 at the end, which diffusers would then look up as T - 1: it is dropped.
        timesteps = np.round(np.arange(size, 0, -size / num_steps))[:num_steps] - 1
    else:
        assert config.timestep_spacing == "leading", config.timestep_spacing
        timesteps = np.arange(num_steps)[::-1] * (size // num_steps) + config.steps_offset
        if timesteps[0] >= size:
            raise UserError(
                f"num_steps={num_steps} with steps_offset={config.steps_offset} starts at time "
                f"{timesteps[0]}, beyond the last training time {size - 1}; take fewer steps"
            )
    return timesteps.astype(np.int32)

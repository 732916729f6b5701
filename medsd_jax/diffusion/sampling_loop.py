"""The loop that every sampler runs in, and what a sampler is to it.

Symbols: x the state, z unit noise.

    (1)  x = start_scale z                              the first state of a run from noise
    (2)  x, history <- step(x, history, call i)         i = 0 .. num_calls - 1

A `Sampler` works in two places. On the host it lays a run out as a `StepTable`: which times, and
the coefficients of its equations that do not depend on the network. In the compiled program it
makes one step (2) from one row of that table and one output of the network.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Real

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medsd_jax.diffusion.step_table import StepTable

Row = Mapping[str, Any]
"""One row of a step table's columns: name -> scalar, or a short vector."""

History = Any
"""A pytree of what a multistep sampler keeps of earlier calls; () where it keeps nothing."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the network, as the step sees it that follows.

    Attributes:
        schedule: The noise levels; its prediction_type says what the network's output is.
        output: [B, h, w, C] float, the network's output at (model_input(x, row), row["t"]).
        row: This call's row of the step table's columns, and its time as "t".
        draw: Gives this call's fresh noise z [B, h, w, C] float32.
    """

    schedule: NoiseSchedule
    output: Latents
    row: Row
    draw: Callable[[], Latents]


class Sampler(abc.ABC):
    """A sampler: the table of a run, and one step. It holds no state.

    The defaults are those of a sampler that keeps nothing from one call to the next and whose state
    has a variance near 1.

    Attributes:
        takes_eta: Whether the step reads a column "eta" [N] in [0, 1], the run's amount of fresh
            noise, which `samplers.make_step_table` adds.
        clips: Whether it honours the schedule's clip_range.
    """

    takes_eta = False
    clips = False

    @abc.abstractmethod
    def table(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> StepTable:
        """Tabulates a run on the host.

        Args:
            config: The noise process and the choice of times.
            num_steps: Of the whole run, from noise.
            first: Steps at the beginning that are left out, in [0, num_steps): a run that starts
                from a noised image.

        Returns:
            The table, not padded.

        Raises:
            UserError: The sampler cannot work with these values.
        """

    @abc.abstractmethod
    def step(self, x: Latents, history: History, call: Call) -> tuple[Latents, History]:
        """Makes one step (2).

        Args:
            x: [B, h, w, C] float32, the state.
            history: From the call before.
            call: What the network answered, and where.

        Returns:
            The next state [B, h, w, C] float32, and what to keep.
        """

    def history(self, x: Latents) -> History:
        """What is kept before the first call from state x [B, h, w, C] float32."""
        return ()

    def model_input(self, x: Latents, row: Row) -> Latents:
        """What the network sees of state x [B, h, w, C] float32: x with variance near 1."""
        return x


def run_sampler(
    sampler: Sampler,
    denoise: Callable[[Latents, Real[Array, " B"]], Latents],
    schedule: NoiseSchedule,
    start: Latents,
    table: StepTable,
    step_noise: Callable[[Int[Array, ""]], Latents],
    after_call: Callable[[Int[Array, ""], Latents], Latents] = lambda i, x: x,
) -> Latents:
    """Follows a step table from `start` to clean latents.

    Every argument but the sampler and the functions may be traced. The loop has a traced bound and
    therefore no reverse-mode gradient.

    Args:
        sampler: The one that made the table.
        denoise: Maps (x [B, h, w, C] float32, t [B] of table.times' dtype) to the network's output
            [B, h, w, C].
        schedule: The noise levels; its prediction_type says what the network's output is.
        start: [B, h, w, C] float, the first state, by (1) or `StepTable.noised`.
        table: Of this run; with 0 calls `start` comes back.
        step_noise: Maps the call's number i [] int32, from 0, to fresh noise [B, h, w, C].
        after_call: Maps (i, the state after call i) to the state that the run goes on with.

    Returns:
        [B, h, w, C] float32, clean latents, multiplied by vae.scaling_factor.
    """
    columns = jax.tree.map(jnp.asarray, {**table.columns, "t": table.times})

    def next_state(i: Int[Array, ""], carry: tuple[Latents, History]) -> tuple[Latents, History]:
        x, history = carry
        row = {name: column[i] for name, column in columns.items()}
        output = denoise(sampler.model_input(x, row), jnp.full(x.shape[:1], row["t"]))
        x, history = sampler.step(x, history, Call(schedule, output, row, lambda: step_noise(i)))
        return after_call(i, x), history

    start = start.astype(jnp.float32)
    return jax.lax.fori_loop(0, table.num_calls, next_state, (start, sampler.history(start)))[0]

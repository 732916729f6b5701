"""The loop that every sampler runs in, and what a sampler is to it.

Symbols: x the state, x0 clean latents, z unit noise.

    (1)  x = start_scale z             the first state of a run from noise
    (2)  x = signal[i] x0 + noise[i] z     known latents, noised to the level that call i expects
    (3)  x, history <- step(model_output, x, row i, history)      i = 0 .. num_calls - 1

A sampler is a `StepRule`. On the host it plans a run: which times, and the numbers of its equations
that do not depend on the network, as tables with one row a network call. In the compiled program
it makes one step (3) from one row. The tables are arguments of the program, padded to one length,
so that all numbers of steps and all spacings run in the same program.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Real

from medsd_jax.arrays import Latents
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig

Row = Mapping[str, Any]
"""One row of a plan's columns: name -> scalar, or a short vector."""

History = Any
"""A pytree of what a multistep sampler keeps of earlier calls; () where it keeps nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """One run of one sampler: a pytree of arrays, all of which may be traced.

    Attributes:
        num_calls: [] int32, network calls of this run.
        start_scale: [] float32: start_scale of (1).
        times: [N] int32 or float32, what the network is told in each call.
        signal: [N + 1] float32: signal of (2). Row num_calls belongs to the result and is 1.
        noise: [N + 1] float32: noise of (2), 0 in row num_calls.
        columns: the sampler's own tables, [N, ...] each.
    """

    # Untyped, because JAX rebuilds pytrees with shapes, shardings or booleans for leaves.
    num_calls: Any
    start_scale: Any
    times: Any
    signal: Any
    noise: Any
    columns: Any

    @classmethod
    def of(
        cls,
        times: np.ndarray,
        signal: np.ndarray,
        noise: np.ndarray,
        columns: Mapping[str, np.ndarray],
        start_scale: float = 1.0,
    ) -> "Plan":
        """Makes the plan of as many calls as there are times; the row of the result is added."""
        return cls(
            num_calls=np.int32(len(times)),
            start_scale=np.float32(start_scale),
            times=times,
            signal=np.append(signal, 1.0).astype(np.float32),
            noise=np.append(noise, 0.0).astype(np.float32),
            columns=dict(columns),
        )

    def padded(self, num_rows: int) -> "Plan":
        """Fills the tables up to `num_rows` rows with repetitions that are never used."""

        def fill(table: np.ndarray, rows: int) -> np.ndarray:
            margins = [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1)
            return np.pad(table, margins, mode="edge")

        return dataclasses.replace(
            self,
            times=fill(self.times, num_rows),
            signal=fill(self.signal, num_rows + 1),
            noise=fill(self.noise, num_rows + 1),
            columns={name: fill(table, num_rows) for name, table in self.columns.items()},
        )

    def noised(self, i: Int[Array, ""] | int, x0: Latents, z: Latents) -> Latents:
        """Noises known latents to the level of the state before call i, by (2).

        Args:
            i: [] int32 in [0, num_calls]; num_calls gives x0 itself.
            x0: [B, h, w, C] float32, clean latents, multiplied by vae.scaling_factor.
            z: [B, h, w, C] float32, standard normal.

        Returns:
            [B, h, w, C] float32.
        """
        return jnp.asarray(self.signal)[i] * x0 + jnp.asarray(self.noise)[i] * z


@runtime_checkable
class StepRule(Protocol):
    """A sampler.

    Attributes:
        takes_eta: Whether the step reads a column "eta" [N] in [0, 1], the run's amount of fresh
            noise, which `samplers.make_plan` adds.
    """

    takes_eta: bool

    def plan(self, config: ScheduleConfig, num_steps: int, first: int = 0) -> Plan:
        """Tabulates a run on the host.

        Args:
            config: The noise process and the choice of times.
            num_steps: Of the whole run, from noise.
            first: Steps at the beginning that are left out, in [0, num_steps): a run that starts
                from a noised picture.

        Returns:
            The plan, not padded.

        Raises:
            UserError: The sampler cannot work with these values.
        """

    def history(self, x: Latents) -> History:
        """What is kept before the first call from state x [B, h, w, C] float32."""

    def model_input(self, x: Latents, row: Row) -> Latents:
        """What the network sees of state x [B, h, w, C] float32: x with variance near 1."""

    def step(
        self,
        schedule: NoiseSchedule,
        model_output: Latents,
        x: Latents,
        row: Row,
        history: History,
        draw: Callable[[], Latents],
    ) -> tuple[Latents, History]:
        """Makes one step (3).

        Args:
            schedule: The noise levels; its prediction_type says what the network's output is.
            model_output: [B, h, w, C] float, at (model_input(x, row), row["t"]).
            x: [B, h, w, C] float32, the state.
            row: This call's row of the plan's columns, and its time as "t".
            history: From the call before.
            draw: Gives this call's fresh noise z [B, h, w, C] float32.

        Returns:
            The next state [B, h, w, C] float32, and what to keep.
        """


def run_sampler(
    rule: StepRule,
    denoise: Callable[[Latents, Real[Array, " B"]], Latents],
    schedule: NoiseSchedule,
    start: Latents,
    plan: Plan,
    step_noise: Callable[[Int[Array, ""]], Latents],
    after_call: Callable[[Int[Array, ""], Latents], Latents] = lambda i, x: x,
) -> Latents:
    """Follows a plan from `start` to clean latents.

    Every argument but the rule and the functions may be traced. The loop has a traced bound and
    therefore no reverse-mode gradient.

    Args:
        rule: The sampler that made the plan.
        denoise: Maps (x [B, h, w, C] float32, t [B] of plan.times' dtype) to the network's output
            [B, h, w, C].
        schedule: The noise levels; its prediction_type says what the network's output is.
        start: [B, h, w, C] float, the first state, by (1) or (2).
        plan: Of this run; with 0 calls `start` comes back.
        step_noise: Maps the call's number i [] int32, from 0, to fresh noise [B, h, w, C].
        after_call: Maps (i, the state after call i) to the state that the run goes on with.

    Returns:
        [B, h, w, C] float32, clean latents, multiplied by vae.scaling_factor.
    """
    tables = jax.tree.map(jnp.asarray, {**plan.columns, "t": plan.times})

    def call(i: Int[Array, ""], carry: tuple[Latents, History]) -> tuple[Latents, History]:
        x, history = carry
        row = {name: table[i] for name, table in tables.items()}
        model_output = denoise(rule.model_input(x, row), jnp.full(x.shape[:1], row["t"]))
        x, history = rule.step(schedule, model_output, x, row, history, lambda: step_noise(i))
        return after_call(i, x), history

    start = start.astype(jnp.float32)
    return jax.lax.fori_loop(0, plan.num_calls, call, (start, rule.history(start)))[0]

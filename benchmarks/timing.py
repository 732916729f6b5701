"""Interleaved timing, its statistics, and the check that both sides computed the same."""

import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest relative difference of the two frameworks' results: beyond it they did other work."""


@dataclass(frozen=True)
class Contestant:
    """One implementation of the work.

    Attributes:
        name: its key in the JSON line.
        run: starts the work once; a GPU may still be at it when it returns.
        finish: of what `run` returned last: waits until all is done, and returns a number or array
            to compare.
    """

    name: str
    run: Callable[[], Any]
    finish: Callable[[Any], Any] = lambda result: result


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def first_call(contestant: Contestant) -> tuple[float, float | np.ndarray]:
    """Seconds and result of the first call, which compiles and warms up."""
    begin = time.perf_counter()
    result = contestant.finish(contestant.run())
    return time.perf_counter() - begin, result


@dataclass(frozen=True)
class Rounds:
    """What `interleave` measured: seconds per call, one a round, by contestant.

    Attributes:
        wall: elapsed.
        cpu: of all this process's threads. On a machine that others use too it is the steadier one,
            most of all with a single core (taskset), where no thread spins while it waits.
        others: part of the cores that other processes used meanwhile; None where not Linux.
        results: each contestant's last result.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    others: float | None
    results: dict[str, Any]

    def without(self, names: Collection[str]) -> "Rounds":
        """The same measurement without these contestants."""
        wall, cpu, results = (
            {name: x for name, x in part.items() if name not in names}
            for part in (self.wall, self.cpu, self.results)
        )
        return Rounds(wall, cpu, self.others, results)


def interleave(contestants: Sequence[Contestant], *, calls: int, repeats: int) -> Rounds:
    """Times the contestants in turns, so that what else the machine does hits them alike.

    Args:
        contestants: already warmed up.
        calls: of each contestant in each round, each started without waiting for the one before.
        repeats: rounds; every second one goes through the contestants backwards.
    """
    start, before = time.perf_counter(), cpu_seconds()
    wall: dict[str, list[float]] = {c.name: [] for c in contestants}
    cpu: dict[str, list[float]] = {c.name: [] for c in contestants}
    results: dict[str, Any] = {}
    for round_number in range(repeats):
        for contestant in contestants[:: 1 if round_number % 2 == 0 else -1]:
            begin, cpu_begin = time.perf_counter(), time.process_time()
            for _ in range(calls):
                result = contestant.run()
            results[contestant.name] = contestant.finish(result)
            wall[contestant.name].append((time.perf_counter() - begin) / calls)
            cpu[contestant.name].append((time.process_time() - cpu_begin) / calls)
    others = others_share(before, cpu_seconds(), time.perf_counter() - start)
    return Rounds(wall, cpu, others, results)


def cpu_seconds() -> tuple[float, float] | None:
    """CPU seconds used so far by the whole machine and by this process; None where not Linux."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, soft_irq = map(int, file.readline().split()[1:8])
    except OSError:
        return None
    busy = (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")
    return busy, time.process_time()


def others_share(
    before: tuple[float, float] | None, after: tuple[float, float] | None, wall: float
) -> float | None:
    """Part of all cores that other processes used in between: near 0, or the times are too long."""
    if before is None or after is None:
        return None
    machine, own = (b - a for a, b in zip(before, after, strict=True))
    return round(max(machine - own, 0.0) / (wall * os.cpu_count()), 3)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest, to 5 digits."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: float(f"{value:.5g}") for key, value in numbers.items()}


def report(rounds: Rounds, flops: float) -> dict[str, Any]:
    """The timed part of the JSON line; `flops` of one call."""
    return {
        "other_processes_cpu_share": rounds.others,
        "seconds": {name: spread(values) for name, values in rounds.wall.items()},
        "cpu_seconds": {name: spread(values) for name, values in rounds.cpu.items()},
        "gflop_per_second": {
            name: round(flops / statistics.median(values) / 1e9, 2)
            for name, values in rounds.wall.items()
        },
        # Below 1 ours is the faster.
        "ratio_ours_to": _ratios(rounds.wall),
        "cpu_ratio_ours_to": _ratios(rounds.cpu),
    }


def _ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Ours divided by the other, round by round."""
    return {
        name: spread([a / b for a, b in zip(seconds["ours"], values, strict=True)])
        for name, values in seconds.items()
        if name != "ours"
    }


def relative_difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value of torch's result."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_agreement(what: str, ours: Any, theirs: Any, tolerance: float) -> float:
    """The relative difference; AssertionError where the two computed different things."""
    difference = relative_difference(ours, theirs)
    if not difference <= tolerance:  # nan fails too
        raise AssertionError(
            f"{what}: ours and torch's differ by {difference:.2e} relative, more than "
            f"{tolerance:.0e}: the two do not compute the same, so times mean nothing"
        )
    return difference

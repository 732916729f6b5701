"""Scalars of a run: to TensorBoard and to metrics.jsonl, and the speedometer."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from medsd_jax.errors import DivergedError
from medsd_jax.files import atomic_write

log = logging.getLogger(__name__)


class ScalarWriter:
    """Writes scalars by step: a line of metrics.jsonl is ``{"step": 10, "train/loss": 0.5, ...}``.

    Args:
        workdir: metrics.jsonl and tensorboard/ go here.
        keep_through: a resumed run appends; lines of later steps than this, which a killed run
            left and which will be computed again, are dropped. None drops all.
        enabled: False writes nothing: one process of several writes for all.
    """

    def __init__(self, workdir: Path, *, keep_through: int | None, enabled: bool = True):
        self._file = self._board = None
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        last = -1 if keep_through is None else keep_through
        if path.exists():
            lines = "".join(
                json.dumps(row) + "\n" for row in read_scalars(workdir) if row["step"] <= last
            )
            with atomic_write(path) as part:
                part.write_text(lines)
        self._file = path.open("a")
        # purge_step hides from TensorBoard what a killed run had logged beyond its last checkpoint.
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=last + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes and flushes: a killed run keeps its curves."""
        if self._file is None:
            return
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes both files."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def read_scalars(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; what is no line of a run is left out, with a warning.

    A last line that a killed run left unfinished is left out without one.
    """
    path = workdir / "metrics.jsonl"
    rows, wrong = [], []
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            wrong.append(number)
    if (row := _row(rest)) is not None:
        rows.append(row)
    if wrong:
        log.warning(
            "%s: %d lines are no scalars of a run and are left out (the first is line %d)",
            path,
            len(wrong),
            wrong[0],
        )
    return rows


def _row(line: bytes) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # bytes that are no text, too
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if all(type(value) in (int, float) for value in row.values()) else None


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Stops a run that has diverged.

    Raises:
        DivergedError: names the metric and the step.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"{name} is {value} at step {step}: training has diverged; checkpoints from before "
                "are intact; try a lower optim.learning_rate, a smaller optim.clip_norm or "
                "model.dtype=float32"
            )


class Throughput:
    """Images per second since the last question, without what is not training."""

    def __init__(self) -> None:
        self._images, self._start = 0, time.perf_counter()

    def add(self, images: int) -> None:
        """Counts images done."""
        self._images += images

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside does not count."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began

    def rate(self) -> float:
        """Images/s since the last call, and starts over."""
        now = time.perf_counter()
        rate = self._images / max(now - self._start, 1e-9)
        self._images, self._start = 0, now
        return rate

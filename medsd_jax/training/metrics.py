"""Scalars of a run: to TensorBoard and to metrics.jsonl, and the speedometer."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter


class ScalarWriter:
    """Writes scalars by step. One line of metrics.jsonl is ``{"step": 10, "train/loss": 0.5, ...}``.

    A resumed run appends; `truncate_after` first drops the lines that will be computed again.
    """

    def __init__(self, workdir: Path, *, truncate_after: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if json.loads(line)["step"] <= truncate_after]
            self._path.write_text("".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        # purge_step hides from TensorBoard what a killed run had logged beyond its last checkpoint.
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=truncate_after + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes and flushes: a killed run keeps its curves."""
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._board.close()


def read_scalars(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Stops a run that has diverged.

    Raises:
        FloatingPointError: names the metric and the step.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: training has diverged. The last checkpoint is intact; "
                "try a lower optim.learning_rate, a smaller optim.clip_norm or model.dtype=float32"
            )


class Throughput:
    """Images per second since the last question."""

    def __init__(self) -> None:
        self._images, self._start = 0, time.perf_counter()

    def add(self, images: int) -> None:
        """Counts images done."""
        self._images += images

    def rate(self) -> float:
        """Images/s since the last call, and starts over."""
        now = time.perf_counter()
        rate = self._images / max(now - self._start, 1e-9)
        self._images, self._start = 0, now
        return rate

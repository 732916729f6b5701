"""The best weights of a run so far, by one metric, in a folder that is replaced as a whole."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medsd_jax.arrays import Params
from medsd_jax.errors import UserError
from medsd_jax.files import write_json
from medsd_jax.parallel.multihost import is_main_process, on_every_host, true_everywhere
from medsd_jax.training.checkpoint import plain

log = logging.getLogger(__name__)

METADATA = "best.json"


class KeepBest:
    """Keeps WORKDIR/best: the weights, and best.json.

    best.json holds metric, value, step, metrics (all that were measured then) and settings (how).
    It is read at the start, so that a resumed run knows what to surpass. Of equal values the
    earlier one stays; a value that is not finite is never the best.

    Args:
        workdir: of the run.
        metric: the name that decides.
        larger_is_better: whether it grows as the model gets better.
        settings: how the metrics are measured, as plain values. Values measured in another way do
            not compare: the best so far then counts no more.
        save: ``(weights on the host, folder)``, writes the weights; called by the main process.

    Raises:
        UserError: the folder holds something else, or a best.json that cannot be read.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        metric: str,
        larger_is_better: bool,
        settings: Mapping[str, Any],
        resumed: bool,
        save: Callable[[Mapping[str, Any], Path], None],
    ):
        self.folder = workdir / "best"
        self._new, self._old = workdir / ".best-new", workdir / ".best-old"
        self._metric, self._sign = metric, 1.0 if larger_is_better else -1.0
        self._settings, self._save = plain(settings), save
        if is_main_process():
            self._clear_up()
        self.value = self._known(resumed)

    def __call__(self, params: Params, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps the weights if they are better. All processes call it.

        Args:
            params: all weights, on the devices.
            step: optimizer steps done.
            metrics: name -> value, the deciding one among them.
        """
        value = float(metrics[self._metric])
        better = math.isfinite(value) and (
            self.value is None or self._sign * value > self._sign * self.value
        )
        # The main process decides: on hosts without its disk the others know no earlier best.
        if not true_everywhere(better or not is_main_process()):
            return
        self.value = value
        weights = on_every_host(params)
        if not is_main_process():
            return
        self._save(weights, self._new)
        metadata = {"metric": self._metric, "value": value, "step": step, "metrics": dict(metrics)}
        write_json(self._new / METADATA, {**metadata, "settings": self._settings})
        if self.folder.exists():
            self.folder.rename(self._old)
        self._new.rename(self.folder)
        shutil.rmtree(self._old, ignore_errors=True)

    def _clear_up(self) -> None:
        """After a run that was killed while it replaced the folder."""
        if self._old.exists() and not self.folder.exists():
            self._old.rename(self.folder)
        for left in (self._old, self._new):
            shutil.rmtree(left, ignore_errors=True)

    def _known(self, resumed: bool) -> float | None:
        """The value of the best so far, where it compares."""
        if not self.folder.exists():
            return None
        path = self.folder / METADATA
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            metric, value, step = metadata["metric"], float(metadata["value"]), metadata["step"]
            settings = metadata["settings"]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path} cannot be read ({error!r}), so {self.folder} is not overwritten: remove "
                "that folder, or use another workdir"
            ) from error
        if resumed and (metric, settings) == (self._metric, self._settings):
            log.info("the best so far: %s = %g at step %d", metric, value, step)
            return value
        log.warning(
            "%s holds step %d with %s = %g, which %s: the next evaluation replaces it",
            self.folder,
            step,
            metric,
            value,
            "was measured in another way than now" if resumed else "is of a run before this one",
        )
        return None

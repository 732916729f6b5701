"""Checkpoints of a run by Orbax: model and optimizer state, position in the data, the config."""

import errno
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from medsd_jax.errors import UserError
from medsd_jax.files import writing
from medsd_jax.parallel.multihost import from_main, is_main_process, true_everywhere
from medsd_jax.training.checksums import find_damage, write_checksums

log = logging.getLogger(__name__)

_OF_SYSTEM = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds.

    Attributes:
        state: TrainState, on the devices.
        data: the position in the data.
        config: of the run that saved it.
        pending: scalars of the steps since the last line of metrics.jsonl, oldest first.
    """

    state: Any
    data: bytes
    config: dict[str, Any]
    pending: list[dict[str, float]]


class Checkpoints:
    """The `checkpoints/` folder of one workdir.

    Saving is asynchronous: `save` returns once the arrays are copied to the host; `close` waits for
    the disk. A step's folder appears under its final name only when it is complete, so a killed run
    leaves no half checkpoint behind. What disks and people do to it later is found by checksums.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._folder = (workdir / "checkpoints").absolute()
        self._saving = -1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            # Called on the main process, once all have written and before the folder gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
        )
        # Named here, because a new process must be able to ask what a checkpoint holds.
        handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        absl = logging.getLogger("absl")
        # It looks at a file of every step, and tells of damages in lines of its own.
        absl.addFilter(_tells_no_damage)
        try:
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_handlers=handlers
            )
        finally:
            absl.removeFilter(_tells_no_damage)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        *,
        data: bytes,
        config: Mapping[str, Any],
        pending: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Saves what is needed to go on exactly. A step that is saved already is left as it is.

        Args:
            step: optimizer steps done.
            state: TrainState.
            data: the data iterator's position, from its get_state(); the same in all processes.
            config: the run's config as plain values.
            pending: scalars of the steps that stand in no line of metrics.jsonl yet.
        """
        if self._manager.latest_step() == step:
            return
        self._manager.wait_until_finished()  # one at a time, so that the checksums find theirs
        self._saving = step
        run = {"data": data.decode(), "config": plain(config), "pending": list(pending)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(plain(run))
        )
        self._manager.save(step, args=args)

    def restore(self, like: Any) -> Restored:
        """Reads the newest checkpoint that is whole; newer ones are put aside, with a warning.

        Args:
            like: TrainState of ShapeDtypeStructs with shardings: the devices need not be those of
                the run that saved.

        Returns:
            What it holds, the state in the shardings of `like`.

        Raises:
            UserError: the checkpoint is of another model, adaptation or optimizer; or none is
                whole.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            result = self._restore(step, like)
            if isinstance(result, Restored):
                if damaged:
                    self._put_aside(damaged, step)
                return result
            damaged[step] = result
        raise UserError(
            f"{self._folder} holds no checkpoint that is whole ({_listed(damaged)}): bring a copy "
            "of one back, or remove that folder to start over"
        )

    def _restore(self, step: int, like: Any) -> Restored | str:
        """What the step holds, or why it cannot be read; all processes come to the same."""
        why = find_damage(self._folder / str(step)) if is_main_process() else None
        if from_main(int(why is not None)):
            return why or "the main process says why"
        result: Restored | str
        try:
            self._check_fits(step, like)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like), run=ocp.args.JsonRestore()
                ),
            )
            run = restored["run"]
            result = Restored(
                restored["state"],
                run["data"].encode(),
                dict(run["config"]),
                [dict(row) for row in run.get("pending", [])],
            )
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # which says nothing about the files
        except Exception as error:
            if _of_system(error):
                raise
            result = f"{type(error).__name__}: {_first_words(error)}"
        if true_everywhere(isinstance(result, Restored)):
            return result
        return result if isinstance(result, str) else "another process cannot read it"

    def _put_aside(self, damaged: Mapping[int, str], step: int) -> None:
        # Orbax saves no step below the newest that it sees.
        aside = self._folder.with_name("damaged_checkpoints")
        if is_main_process():
            with writing(aside):
                aside.mkdir(exist_ok=True)
                for number in damaged:
                    shutil.rmtree(aside / str(number), ignore_errors=True)
                    (self._folder / str(number)).rename(aside / str(number))
        true_everywhere(True)  # nobody looks before they are moved
        self._manager.reload()
        log.warning(
            "%s: damaged (%s), moved to %s; the run goes on from step %d",
            self._folder,
            _listed(damaged),
            aside,
            step,
        )

    def _write_checksums(self) -> None:
        name = str(self._saving)
        (unfinished,) = [*self._folder.glob(f"{name}.*tmp*")] or [self._folder / name]
        write_checksums(unfinished)

    def _check_fits(self, step: int, like: Any) -> None:
        # Orbax's own message is a page long, and it lists both trees.
        saved = self._manager.item_metadata(step)["state"]
        saved, expected = _shapes(saved), _shapes(like)
        for name in sorted(saved.keys() | expected.keys()):
            if saved.get(name) != expected.get(name):
                raise UserError(
                    f"{self._folder}/{step} does not fit this config: {name} is "
                    f"{_describe(saved, name)} there and {_describe(expected, name)} here (another "
                    "model, train pattern, optimizer or EMA switch?); use another workdir, or the "
                    "config that it was made with"
                )

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def has_checkpoint(workdir: Path) -> bool:
    """Whether training in this workdir would go on from a checkpoint."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and bool(ocp.utils.checkpoint_steps(folder))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def _tells_no_damage(record: logging.LogRecord) -> bool:
    return "Metadata file" not in record.getMessage()


def _of_system(error: Exception) -> bool:
    """Whether the system refuses to read, whatever the files hold."""
    if isinstance(error, OSError):
        return error.errno in _OF_SYSTEM
    return any(word in str(error) for word in ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED"))


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def _listed(damaged: Mapping[int, str]) -> str:
    return "; ".join(f"{step}: {why}" for step, why in damaged.items())


def _describe(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "absent"


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON would give it back: tuples are lists."""
    return json.loads(json.dumps(config))


def changed_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value before, value now) of what differs; a missing key counts as None."""
    changed = {}
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed |= changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            changed[prefix + key] = (old, new)
    return changed

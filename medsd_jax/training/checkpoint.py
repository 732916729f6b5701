"""Checkpoints of a run by Orbax: model and optimizer state, position in the data, the config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from medsd_jax.errors import UserError


class Checkpoints:
    """The `checkpoints/` folder of one workdir.

    Saving is asynchronous: `save` returns once the arrays are copied to the host; `close` waits for
    the disk. A step's folder appears under its final name only when it is complete, so a killed run
    leaves no half checkpoint behind.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._folder = (workdir / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        # Named here, because a new process must be able to ask what a checkpoint holds.
        handlers = {"state": ocp.StandardCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, *, data: bytes, config: Mapping[str, Any]) -> None:
        """Saves what is needed to go on exactly. A step that is saved already is left as it is.

        Args:
            step: optimizer steps done.
            state: TrainState.
            data: the data iterator's position, from its get_state(); the same in all processes.
            config: the run's config as plain values.
        """
        if self._manager.latest_step() == step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                run=ocp.args.JsonSave({"data": data.decode(), "config": plain(config)}),
            ),
        )

    def restore(self, like: Any) -> tuple[Any, bytes, dict[str, Any]]:
        """Reads the newest checkpoint.

        Args:
            like: TrainState of ShapeDtypeStructs with shardings: the devices need not be those of
                the run that saved.

        Returns:
            (state on the devices and in the shardings of `like`, position in the data, config).

        Raises:
            UserError: the checkpoint is of another model, adaptation or optimizer.
        """
        step = self._manager.latest_step()
        self._check_fits(step, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), run=ocp.args.JsonRestore()
            ),
        )
        run = restored["run"]
        return restored["state"], run["data"].encode(), run["config"]

    def _check_fits(self, step: int, like: Any) -> None:
        # Orbax's own message is a page long, and it lists both trees.
        saved = self._manager.item_metadata(step)["state"]
        saved, wanted = _shapes(saved), _shapes(like)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"{self._folder}/{step} does not fit this config: {name} is "
                    f"{_said(saved, name)} there and {_said(wanted, name)} here (another model, "
                    "train pattern, optimizer or EMA switch?); use another --workdir, or the "
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


def _said(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
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

"""Checkpoints of a run: model and optimizer state, the data iterator's position, the config. By Orbax."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from medsd_jax.errors import UserError


class Checkpoints:
    """The `checkpoints/` folder of one workdir.

    Saving is asynchronous: `save` returns once the arrays are copied to the host; `close` waits for the
    disk. A step's folder appears under its final name only when it is complete, so a killed run
    leaves no half checkpoint behind.
    """

    def __init__(self, workdir: Path, *, keep: int):
        self._folder = (workdir / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, *, data: bytes, config: dict) -> None:
        """Saves what is needed to go on exactly.

        Args:
            step: optimizer steps done.
            state: TrainState.
            data: the data iterator's position, from its get_state(), of this process.
            config: the run's config as plain values.
        """
        if self._manager.latest_step() == step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave({str(jax.process_index()): data.decode()}),
                config=ocp.args.JsonSave(config),
            ),
        )

    def restore(self, like: Any) -> tuple[Any, bytes]:
        """The newest checkpoint's state, on the devices and in the shardings of `like`, and the data position.

        Args:
            like: TrainState of ShapeDtypeStructs with shardings.

        Raises:
            UserError: the checkpoint is of another model, adaptation or optimizer.
        """
        step = self._manager.latest_step()
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore())
            )
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{self._folder}/{step} does not fit this config (other model, train patterns, optimizer or EMA "
                f"setting?): {str(error).splitlines()[0]}; use another --workdir, or the config it was made with"
            ) from error
        positions = restored["data"]
        process = str(jax.process_index())
        if process not in positions:
            raise UserError(
                f"{self._folder}/{step} has the data positions of {len(positions)} process(es), not of process {process}"
            )
        return restored["state"], positions[process].encode()

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def write_json_atomically(path: Path, value: Any) -> None:
    """Writes beside the target and renames, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)

"""Several processes decide together, without waiting for each other in every step."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medsd_jax.parallel.mesh import replicated


class Vote:
    """Asked once per step by all processes; the answer is the same in all of them.

    The answers travel with the steps' own programs, a few steps behind, so that nobody waits for
    them. With one process the answer is immediate and free.
    """

    def __init__(self, mesh: Mesh, *, steps_behind: int):
        """Compiles nothing yet.

        Args:
            mesh: all devices of all processes.
            steps_behind: how many steps after it was asked a question is answered; what runs
                before that should have ended by then.
        """
        self._steps_behind = steps_behind
        self._alone = jax.process_count() == 1
        self._asked: deque[jax.Array] = deque()
        if not self._alone:
            flat = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            shape = (mesh.size,)
            self._ballots = [
                jax.make_array_from_callback(shape, flat, lambda at: np.full(shape, yes)[at])  # noqa: B023
                for yes in (False, True)
            ]
            self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))

    def __call__(self, here: bool) -> bool:
        """Whether any process said yes, `steps_behind` calls ago or before. All of them call it."""
        if self._alone:
            return here
        self._asked.append(self._any(self._ballots[here]))
        return len(self._asked) > self._steps_behind and bool(self._asked.popleft())

    def now(self, here: bool) -> bool:
        """Whether any process says yes at this very call. All of them call it, and wait."""
        return here if self._alone else bool(self._any(self._ballots[here]))

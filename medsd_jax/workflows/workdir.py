"""The folder of a run: one run at a time writes there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from medsd_jax.errors import UserError
from medsd_jax.files import remove_parts
from medsd_jax.locks import lock
from medsd_jax.parallel.multihost import is_main_process, true_everywhere


@contextlib.contextmanager
def working_in(folder: Path, what: str) -> Iterator[None]:
    """Keeps a folder for this run, whose processes all enter the block, or none does.

    Args:
        folder: made if need be; removed at the end if that was needed and nothing came into it.
        what: what is done there, for the message of who comes second: "a training".

    Raises:
        UserError: another run has it, or it cannot be written; in every process.
    """
    problem, created = None, not folder.exists()
    with contextlib.ExitStack() as held:
        if is_main_process():
            if created:
                held.callback(_remove_if_empty, folder)
            try:
                held.enter_context(lock(folder, what))
                remove_parts(folder)
            except UserError as error:
                problem = error
        if not true_everywhere(problem is None):
            raise problem or UserError(f"{folder} is not used, see the main process")
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()

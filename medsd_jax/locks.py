"""One writer at a time in a folder: a lock that the kernel takes back when its process dies."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)

LOCK_FILE = ".medsd_jax-lock"
"""In the folder that is locked; gone when the lock is given back, left over after a kill."""

_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_POLL_SECONDS = 0.2
_held: dict[tuple[Path, int, int], list] = {}
_warned: set[str] = set()


@contextlib.contextmanager
def lock(folder: str | os.PathLike, what: str, *, wait: float = 0.0) -> Iterator[None]:
    """Holds a folder for writing; nobody else gets it until the block ends or the process dies.

    A thread that holds a folder may lock it again. On several hosts the main process alone takes
    the lock. Where the file system has no locks, a warning says so once and the block runs.

    Args:
        folder: made if it does not exist.
        what: what is done there, for the message of the other one: "a training".
        wait: seconds to wait for the other one before raising; `math.inf` for ever.

    Raises:
        UserError: another process has it, or the folder cannot be written.
    """
    folder = Path(folder).expanduser().resolve()
    key = (folder, os.getpid(), threading.get_ident())
    if key not in _held:
        _held[key] = [0, _take(folder, what, wait)]
    _held[key][0] += 1
    try:
        yield
    finally:
        _held[key][0] -= 1
        if not _held[key][0]:
            give_back(folder / LOCK_FILE, _held.pop(key)[1])


def try_lock(path: Path, what: str = "") -> int | None:
    """Locks the file at `path`, made if need be.

    Args:
        path: the file; it says who holds the lock.
        what: what is done under it: "a training".

    Returns:
        A file descriptor for `give_back`; None if another process holds the lock.

    Raises:
        OSError: the file cannot be made or opened; `errno` is of `unsupported` where the file
            system has no locks.
    """
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # Its last owner may have removed the file between our two calls.
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    with contextlib.suppress(OSError):  # the name is for people; a full disk must not end here
        who = f"process {os.getpid()} on {socket.gethostname()}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (f"{what} of {who}" if what else who).encode(), 0)
    return descriptor


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as refused:
        # Left by another user in a folder that both may write: to read it is enough for the lock.
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise refused from None


def give_back(path: Path, descriptor: int | None) -> None:
    """Removes the lock's file and lets others lock the path anew."""
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            path.unlink()
    os.close(descriptor)


def unsupported(error: OSError) -> bool:
    """Whether an error of `try_lock` says that the file system has no locks."""
    return error.errno in _UNSUPPORTED


def holder(path: Path) -> str:
    """Who wrote the lock's file: "a training of process 12 on host"."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


def _take(folder: Path, what: str, wait: float) -> int | None:
    path, reported, end = folder / LOCK_FILE, False, time.monotonic() + wait
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = try_lock(path, what)
        except OSError as error:
            if not unsupported(error):
                raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
            if str(folder) not in _warned:
                _warned.add(str(folder))
                _log.warning(
                    "%s: no locks on this file system (%s): let no second process write there",
                    folder,
                    error.strerror,
                )
            return None
        if descriptor is not None:
            return descriptor
        if time.monotonic() >= end:
            raise UserError(
                f"{folder} is in use by {holder(path)}: wait until it has ended, or name another "
                "folder"
            )
        if not reported:
            reported = True
            _log.info("waiting for %s in %s", holder(path), folder)
        time.sleep(_POLL_SECONDS)

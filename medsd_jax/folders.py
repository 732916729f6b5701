"""Folders whose content changes as a whole, whenever a writer is killed and whoever reads.

A mounted volume can neither be renamed nor has siblings of its own, so the new content is built and
swapped in inside the folder:

    .medsd_jax-unfinished/   being built; after a kill the next writer removes it
    .medsd_jax-complete/     whole; its entries move to their places, the deciding one last.
                             After a kill the next writer or reader goes on with that.

Caches, which nobody mounts one by one, are built beside their place instead: `beside`.
"""

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

from medsd_jax.errors import UserError
from medsd_jax.files import writing
from medsd_jax.locks import LOCK_FILE, give_back, holder, lock, try_lock

T = TypeVar("T")

_log = logging.getLogger(__name__)

_STAGING = ".medsd_jax-unfinished"
_COMPLETE = ".medsd_jax-complete"
_JOURNAL = ".entries.json"
_OLD = ".old"
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.02


@contextlib.contextmanager
def replacing(folder: Path, what: str, *, last: str, owned: Collection[str] = ()) -> Iterator[Path]:
    """Gives a folder to build in; its entries take their places when the block ends well.

    Args:
        folder: made if need be. Entries that are neither new nor owned stay.
        what: what is written, for who comes second: "a model".
        last: the entry without which the folder holds nothing to any reader.
        owned: entries that go if the new content lacks them.

    Raises:
        UserError: another process writes there, or the system refuses to.
    """
    created = not folder.exists()
    try:
        with lock(folder, what, wait=_WAIT_SECONDS):
            if (folder / _COMPLETE).is_dir():
                _move_in(folder)
            with _built(folder, last, owned) as new:
                yield new
    except BaseException:
        if created:
            with contextlib.suppress(OSError):  # where it is empty
                folder.rmdir()
        raise


@contextlib.contextmanager
def new_folder(folder: Path, what: str, *, last: str) -> Iterator[Path]:
    """As `replacing`, for a folder that must be new, empty, or left by a killed run of the same.

    Raises:
        UserError: the folder holds something else, or as of `replacing`.
    """
    killed = any((folder / name).exists() for name in (LOCK_FILE, _COMPLETE))
    if not killed:
        _check_empty(folder, contents(folder))
    with replacing(folder, what, last=last) as new:
        yield new
        # What a killed run had put in place already is replaced; all else is somebody's.
        _check_empty(folder, contents(folder) - {path.name for path in new.iterdir()})


def contents(folder: Path) -> set[str]:
    """The names in a folder, none if there is none, without those of this module's own.

    Raises:
        UserError: it is a file, or cannot be read.
    """
    if not folder.exists():
        return set()
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise UserError(f"{folder} cannot be read as a folder: {error.strerror}") from error
    return names - {LOCK_FILE, _STAGING, _COMPLETE}


def is_moving(folder: Path, last: str) -> bool:
    """Whether whole new content is on its way to its places, by a live process or a killed one."""
    return os.path.exists(folder / _COMPLETE / last)  # False where the folder is closed


def read_whole(folder: Path, last: str, read: Callable[[], T]) -> T:
    """Reads a folder that somebody may replace meanwhile: the old content or the new, no mixture.

    Args:
        folder: see `replacing`.
        last: as there; it is written anew each time, so that its time of change tells.
        read: reads the folder; called again where it was replaced under it.

    Raises:
        UserError: of `read`, or because the content never stays for as long as reading takes.
    """
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        settle(folder, last)
        before = _identity(folder / last)
        try:
            result, problem = read(), None
        except (UserError, OSError) as error:
            result, problem = None, error
        if before == _identity(folder / last) and not is_moving(folder, last):
            if problem is not None:
                raise problem
            return result
        if time.monotonic() > end:
            raise UserError(f"{folder} is replaced faster than it can be read; try again later")


def settle(folder: Path, last: str) -> None:
    """Waits while new content moves to its places; finishes that for a process that was killed.

    Raises:
        UserError: it was cut short, and this process may not finish it.
    """
    end = time.monotonic() + _WAIT_SECONDS
    while is_moving(folder, last):
        try:
            with lock(folder, "a reader"):
                if (folder / _COMPLETE).is_dir():
                    _move_in(folder)
            continue
        except _DamagedError:
            raise
        except UserError:
            pass  # somebody else has it
        if time.monotonic() > end or not os.access(folder, os.W_OK):
            raise UserError(
                f"{folder} is being replaced by {holder(folder / LOCK_FILE)}: wait, or run the "
                "command that wrote it again"
            )
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside `target` to build in; rename from there. It goes at the end.

    Several processes may build the same. What killed ones left goes, too: see `remove_leftovers`.

    Args:
        target: a file or folder to make; its parent exists.

    Raises:
        UserError: the system refuses to write.
    """
    remove_leftovers(target.parent)
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.unfinished")
    key, descriptor = work.with_suffix(".lock"), None
    with writing(target):
        with contextlib.suppress(OSError):  # no locks here: nobody then removes the leftovers
            descriptor = try_lock(key)
        try:
            work.mkdir()
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            give_back(key, descriptor)


@contextlib.contextmanager
def alone_at(target: Path) -> Iterator[None]:
    """Waits for any other process that makes the same, so that the second finds it made.

    Where the file system has no locks that hold between hosts, both make it; see `beside`.

    Args:
        target: a file or folder to make; its parent exists.
    """
    key = target.with_name(f".{target.name}.lock")
    descriptor, reported = None, False
    with contextlib.suppress(OSError):  # no locks here, or no writing: who writes will say so
        while (descriptor := try_lock(key)) is None:
            if not reported:
                _log.info("waiting for %s, which makes %s", holder(key), target)
            reported = True
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        give_back(key, descriptor)


def wait_until_seen(path: Path) -> None:
    """Waits for what another host wrote: on a shared disk it may be late to show.

    Raises:
        UserError: it does not come.
    """
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        if path.exists():
            return
        os.listdir(path.parent)  # has a network's file system look again
        if time.monotonic() > end:
            raise UserError(
                f"{path} was written by another process, but is not to be seen here after "
                f"{_WAIT_SECONDS:.0f} s: is the disk shared? run the same command again"
            )
        time.sleep(_POLL_SECONDS)


def remove_leftovers(parent: Path) -> None:
    """Removes what `beside` made here for processes that live no more."""
    with contextlib.suppress(OSError):  # of another user, or on a disk without locks
        names = {path.stem for path in parent.glob(".*") if path.suffix in (".unfinished", ".lock")}
        for name in sorted(names):
            key = parent / f"{name}.lock"
            if (descriptor := try_lock(key)) is not None:
                shutil.rmtree(parent / f"{name}.unfinished", ignore_errors=True)
                give_back(key, descriptor)


@contextlib.contextmanager
def _built(folder: Path, last: str, owned: Collection[str]) -> Iterator[Path]:
    new = folder / _STAGING
    with writing(folder):
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
        new.mkdir()
        try:
            yield new
            entries = sorted(path.name for path in new.iterdir())
            assert last in entries, (last, entries)
            journal = {"entries": entries, "last": last, "owned": sorted(owned)}
            (new / _JOURNAL).write_text(json.dumps(journal), encoding="utf-8")
            new.rename(folder / _COMPLETE)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _move_in(folder)


class _DamagedError(UserError):
    """The list of what moves cannot be read: waiting does not help."""


def _move_in(folder: Path) -> None:
    """Moves the complete content to its places, from wherever a killed process left off."""
    complete = folder / _COMPLETE
    try:
        journal = json.loads((complete / _JOURNAL).read_text(encoding="utf-8"))
        last, entries, owned = (journal[key] for key in ("last", "entries", "owned"))
    except FileNotFoundError:
        last, entries, owned = _JOURNAL, [], []  # all had moved, and the rest was being removed
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(
            f"{complete / _JOURNAL} is damaged ({error}): remove {complete}, and run the command "
            "that wrote it again"
        ) from error
    with writing(folder):
        if (complete / last).exists():
            (complete / _OLD).mkdir(exist_ok=True)
            _put_away(folder, last)
            for name in owned:
                if name not in entries:
                    _put_away(folder, name)
            for name in [*(x for x in entries if x != last), last]:
                if (complete / name).exists():
                    _put_away(folder, name)
                    (complete / name).rename(folder / name)
        shutil.rmtree(complete, ignore_errors=True)


def _put_away(folder: Path, name: str) -> None:
    """Moves an earlier entry out of the way: that is fast, removing it may take long."""
    with contextlib.suppress(FileNotFoundError):
        (folder / name).rename(folder / _COMPLETE / _OLD / name)


def _check_empty(folder: Path, names: Collection[str]) -> None:
    if names or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} exists and is not an empty folder: name a new one")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size

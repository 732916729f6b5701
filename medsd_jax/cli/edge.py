"""What the outside world did to a command: disks, permissions, memory, nesting, told in one line.

The writers of the package say most of this themselves. This is the net below them, for libraries
that wrap an error of the system in one of their own, too.
"""

import contextlib
import errno
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

_DISK = {
    os.strerror(number): number
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
}
"""What libraries in C++ and Rust quote of the system's reason."""

_ADVICE = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT), "; free some space and run the same command again"
)


def reason(error: BaseException) -> str | None:
    """One line about an error that no change of our code would prevent; None of a bug."""
    for one, is_cause in _chain(error):
        if isinstance(one, OSError) and one.errno is not None:
            # A bug in the handling of a missing file is a bug; a full disk stops libraries anyhow.
            if is_cause or one.strerror in _DISK:
                return _of_system(one, error)
            continue
        if kind := next((text for text in _DISK if text in str(one)), None):
            return f"{_place(one, str(one))}{kind}{_ADVICE.get(_DISK[kind], '')}"
        if not is_cause:
            continue
        if isinstance(one, MemoryError):
            message = f": {one}" if str(one) else ""
            return f"not enough memory{message}; ask for less at once, or use a larger machine"
        if isinstance(one, RecursionError):
            return f"{_place(one)}nested too deeply to be read ({one})"
        if isinstance(one, UnicodeError):
            return f"{_place(one)}a text cannot be read or written: {one}"
        # By name: importing jax would take a second in commands that do without.
        if type(one).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
            if "RESOURCE_EXHAUSTED" in str(one):
                return (
                    f"the device has not enough memory: {_first_sentence(str(one))}; use a smaller "
                    "batch or image, bfloat16, or more devices"
                )
    return None


@contextlib.contextmanager
def warn_of_threads() -> Iterator[None]:
    """In the block, what the outside does to a thread is one line, too, as of TensorBoard's writer.

    Its owner finds the same, and the main thread ends by that.
    """
    before = threading.excepthook

    def hook(event: threading.ExceptHookArgs) -> None:
        message = None if event.exc_value is None else reason(event.exc_value)
        if message is None:
            before(event)
        else:
            logging.getLogger(__name__).warning("a thread has ended: %s", message)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def hush_echoes(error: BaseException) -> None:
    """Silences what threads and exit handlers say of a failing disk after it was told in a line.

    TensorBoard's writer flushes once more at the exit, and fails again. Other errors of theirs are
    told as ever.
    """
    if not any(isinstance(one, OSError) for one, _ in _chain(error)):
        return
    of_threads, of_exits = threading.excepthook, sys.unraisablehook

    def thread_hook(event: threading.ExceptHookArgs) -> None:
        if not issubclass(event.exc_type, OSError):
            of_threads(event)

    def exit_hook(event: "sys.UnraisableHookArgs") -> None:
        if not isinstance(event.exc_value, OSError):
            of_exits(event)

    threading.excepthook, sys.unraisablehook = thread_hook, exit_hook


def close_bars() -> None:
    """Ends the progress bars that an exception left open: each would be drawn once more later."""
    if tqdm := getattr(sys.modules.get("tqdm"), "tqdm", None):
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def without_traceback(record: logging.LogRecord) -> bool:
    """A filter for Orbax' log: what it logs with a page of traceback, it raises as well."""
    record.exc_info = None
    return True


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The error and what came before it; whether each is the error itself or a cause it names."""
    seen: set[int] = set()
    one: BaseException | None = error
    is_cause = True
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one, is_cause
        is_cause = is_cause and one.__cause__ is not None
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _of_system(one: OSError, error: BaseException) -> str:
    names = [os.fsdecode(n) for n in (one.filename, one.filename2) if isinstance(n, str | bytes)]
    where = f"{names[-1]}: " if names else _place(one) or _place(error)
    return f"{where}{one.strerror or one}{_ADVICE.get(one.errno, '')}"


def _place(error: BaseException, message: str = "") -> str:
    """The file that was at hand where the error came up: "FILE: ", or nothing."""
    if quoted := re.search(r"(?:^|[\s'\"=:])(/[^\s'\"]+[^\s'\":;,.)])", message):
        return f"{quoted[1]}: "
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        if paths := [x for x in frame.f_locals.values() if isinstance(x, Path)]:
            return f"{paths[0]}: "
    return ""


def _first_sentence(text: str) -> str:
    text = " ".join(text.split()).removeprefix("RESOURCE_EXHAUSTED: ")
    return text.split(". ")[0][:200].rstrip(".")

"""Ctrl-C and SIGTERM, answered alike at every moment of a program.

The first one asks for an end in good order: a training saves and stops, anything else stops where
it is, by a KeyboardInterrupt, and a program that only starts ends on the spot. A second one ends
the process at once. A signal that was ignored when the process began, as under nohup and in a
shell's background jobs, stays ignored.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "medsd_jax: interrupted"
"""The last line of a program that a signal ended."""
EXIT_CODE = 130
"""Of such a program; of a second signal it is the system's, 128 + the signal's number."""

_PATIENCE_SECONDS = 0.3

_came = False
"""Whether the program was asked to end. Libraries swallow a KeyboardInterrupt now and then."""
_noting = 0
"""Blocks of `Interrupt` around this point: they stop by themselves, after what they must save."""
_phase: Literal["none", "starting", "working", "done"] = "none"
"""Of the program; none is there in a notebook."""


@contextlib.contextmanager
def program() -> Iterator[None]:
    """A whole program, in its main thread; entered before anything slow is imported.

    Until its work starts, see `working`, a signal ends it on the spot. When the work is done a
    first one changes nothing.
    """
    global _phase
    _phase = "starting"
    take_signals_back()
    _watch()
    yield


@contextlib.contextmanager
def working() -> Iterator[None]:
    """The part of a program in which a signal raises KeyboardInterrupt."""
    global _phase
    before, _phase = _phase, "working" if _phase == "starting" else _phase
    try:
        yield
    finally:
        _phase = "done" if before == "starting" else before


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Imports before the work: there is nothing to lose, and a library may swallow an exception."""
    global _phase
    before, _phase = _phase, "starting" if _phase == "working" else _phase
    try:
        yield
    finally:
        _phase = before


def take_signals_back() -> None:
    """A program's; after a library may have put itself in the place, as JAX' coordination does."""
    if _phase != "none" and not _came:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _answer)


def stop_if_asked() -> None:
    """Raises KeyboardInterrupt where a library has swallowed one.

    For long work, before each of its parts: what JAX calls while it compiles prints and forgets it.
    Within a training's steps it does nothing.
    """
    if _came and _phase == "working" and not _noting:
        raise KeyboardInterrupt


class AgreedStop(KeyboardInterrupt):
    """A signal's, where all processes of the run stop at the same point: nobody need be told."""


class Interrupt:
    """As a context: true once the first SIGINT or SIGTERM came, in place of the exception.

    Where no program answers signals, as in a notebook, it does so itself while the block lasts.
    """

    def __init__(self) -> None:
        self._seen = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        global _noting
        _noting += 1
        with contextlib.suppress(ValueError):  # of a thread, as a notebook's worker: left alone
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._previous[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: Any) -> None:
        global _noting
        _noting -= 1
        self._give_back()

    def __bool__(self) -> bool:
        return self._seen or _came

    def _handle(self, number: int, frame: Any) -> None:
        self._seen = True
        if _answer in self._previous.values():
            _note()
            self._previous.clear()
        self._give_back()

    def _give_back(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()


def _answer(number: int, frame: Any) -> None:
    if _phase == "starting":
        _end()
    _note()
    if _phase == "working":
        raise KeyboardInterrupt


def _end() -> None:
    with contextlib.suppress(OSError):  # where stderr is closed
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_CODE)


def _note() -> None:
    """From here on the system answers, at once, whatever the program is doing."""
    global _came
    _came = True
    sys.unraisablehook = _hush(sys.unraisablehook)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _hush(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """A hook that says nothing of a swallowed interrupt: the last line will."""

    def hushed(event: Any) -> None:
        if not issubclass(event.exc_type, KeyboardInterrupt):
            hook(event)

    return hushed


def _watch() -> None:
    """Ends the process on a second signal while the first waits for a long call to return.

    Python runs handlers between two of its own instructions, and compiling a model is none of them;
    nor is waiting for the other processes of a run to start, which the first signal ends.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def count() -> None:
        seen = 0
        while data := os.read(reader, 64):
            for number in data:
                seen += number in SIGNALS
                if seen > 1:
                    os._exit(128 + number)
            if seen and _phase == "starting":
                time.sleep(_PATIENCE_SECONDS)  # the main thread says it where it can
                _end()

    threading.Thread(target=count, name="second signal", daemon=True).start()

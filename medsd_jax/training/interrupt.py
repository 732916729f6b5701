"""Ctrl-C and SIGTERM: the run saves and stops, instead of losing what it has done."""

import signal
from typing import Any


class Interrupt:
    """As a context: true once the first SIGINT or SIGTERM came. A second one kills as always."""

    def __init__(self) -> None:
        self._seen = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            pass  # not the main thread, as in a notebook's worker: signals stay as they are
        return self

    def __exit__(self, *exception: Any) -> None:
        self._give_back()

    def __bool__(self) -> bool:
        return self._seen

    def _handle(self, number: int, frame: Any) -> None:
        self._seen = True
        self._give_back()

    def _give_back(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

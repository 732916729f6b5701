"""The processes of one run end together: what ends one early ends the others, wherever they are.

Alone, the others would wait in their next exchange for one that is gone: a signal while the prior
is drawn, a full disk on one host, a bug. (In the steps of a training a signal is agreed on before.)
"""

import atexit
import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_KEY = "medsd_jax/ended"
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 15.0
"""For the others to end in good order; then they are ended."""

_other: dict[str, Any] | None = None
_leaving = threading.Event()


class OtherEnded(KeyboardInterrupt):
    """Raised where the main thread happens to be, when another process has ended early."""


def watch_others() -> None:
    """Starts to listen to the other processes; with one process, nothing."""
    import jax

    if jax.process_count() == 1:
        return
    listener = threading.Thread(
        target=_listen, args=(jax.process_index(), threading.main_thread()), daemon=True
    )
    listener.start()

    def stop() -> None:  # runs before JAX takes its leave of the other processes
        _leaving.set()
        listener.join(timeout=2 * _POLL_SECONDS)

    atexit.register(stop)


def tell_others(code: int, message: str) -> None:
    """What this process says when it ends early; with one process, nothing.

    Args:
        code: its exit code, which becomes the others' one.
        message: its last line.
    """
    client = _client()
    if client is None or _other is not None:
        return
    _leaving.set()
    message = message.removeprefix("medsd_jax: ").removeprefix("error: ")
    failure = {"process": _index(), "code": code, "message": message}
    _try(lambda: client.key_value_set(_KEY, json.dumps(failure)))
    # JAX would wait for minutes for others that are stuck.
    _end_after(_grace(), code)


def others_ended() -> bool:
    """Whether another process has ended early: what this one raises then is an echo of that."""
    return _other is not None


def code_of_others() -> int:
    """The exit code of a process that ends because of another one; says so in a line."""
    assert _other is not None
    _leaving.set()
    print(_line(), file=sys.stderr)
    _end_after(_grace(), _other["code"])
    return _other["code"]


def _listen(here: int, main: threading.Thread) -> None:
    global _other
    client = _client()
    while client is not None and not _leaving.wait(_POLL_SECONDS):
        if (text := _try(lambda: client.key_value_try_get(_KEY))) is None:
            continue
        failure = json.loads(text)
        if failure["process"] == here:
            return
        _other = failure
        raised = ctypes.c_ulong(main.ident), ctypes.py_object(OtherEnded)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(*raised)
        if not _leaving.wait(_grace()):
            # In an exchange with a process that is gone, no Python runs.
            print(_line(), file=sys.stderr, flush=True)
            os._exit(failure["code"])


def _grace() -> float:
    """Process 0 ends last: JAX aborts processes whose coordinator is gone."""
    return _GRACE_SECONDS * (1 if _index() else 2)


def _line() -> str:
    assert _other is not None
    return (
        f"medsd_jax: process {_other['process']} has ended ({_other['message']}), and so does this"
    )


def _end_after(seconds: float, code: int) -> None:
    def end() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, daemon=True).start()


def _client() -> Any:
    """JAX' connection to the other processes; None if there is none."""
    distributed = sys.modules.get("jax._src.distributed")
    state = getattr(distributed, "global_state", None)
    return state.client if state is not None and (state.num_processes or 1) > 1 else None


def _index() -> int:
    return sys.modules["jax._src.distributed"].global_state.process_id


def _try(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception:  # a RuntimeError of JAX where the key or the whole service is not there
        return None

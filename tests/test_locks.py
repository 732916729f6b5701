"""The lock of a folder against real second processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from medsd_jax.errors import UserError
from medsd_jax.locks import LOCK_FILE, lock

_HOLD = """
import sys, time
from medsd_jax.locks import lock
with lock(sys.argv[1], "a training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, other):
    with pytest.raises(UserError) as caught, lock(tmp_path / "run", "a training"):
        pass
    message = str(caught.value)
    assert str(tmp_path / "run") in message
    assert f"process {other.pid} on {os.uname().nodename}" in message
    assert "\n" not in message


def test_a_killed_process_holds_nothing(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with lock(tmp_path / "run", "a training"):
        pass
    assert not any((tmp_path / "run").iterdir())


def test_waiting_ends_with_the_other_process(tmp_path, other):
    killer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill -9 {other.pid}"])
    start = time.monotonic()
    with lock(tmp_path / "run", "a cache", wait=60):
        assert time.monotonic() - start > 0.3
    killer.wait()


def test_the_same_thread_may_lock_again_and_keeps_it(tmp_path):
    with lock(tmp_path, "a training"):
        with lock(tmp_path, "a model"):
            pass
        refused = []

        def second():
            try:
                with lock(tmp_path, "a training"):
                    pass
            except UserError:
                refused.append(True)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert refused
    assert not any(tmp_path.iterdir())


def test_no_locks_on_the_file_system_is_one_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        with lock(tmp_path, "a training"):
            pass
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write to .*Not a directory"),
        lock(tmp_path / "file" / "run", "a training"),
    ):
        pass


def test_what_another_user_left_is_locked_and_removed(tmp_path, monkeypatch):
    """In a folder of a group, where the file is only its owner's to write."""
    left, opened = tmp_path / LOCK_FILE, os.open
    left.write_text("a training of process 1 on elsewhere")

    def of_another(path, flags, *mode):
        if os.fspath(path) == str(left) and flags & os.O_RDWR and left.exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", of_another)
    with lock(tmp_path, "a training"):
        assert left.exists()
    assert not left.exists()


def test_a_folder_of_another_user_is_one_line(tmp_path, monkeypatch):
    def closed(path, flags, *mode):
        number = errno.EACCES if flags & os.O_CREAT else errno.ENOENT
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}: Permission denied"):
        with lock(tmp_path, "a training"):
            pass

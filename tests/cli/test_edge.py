"""What the system refuses is one line with exit code 2; what is our mistake keeps its traceback."""

import errno
import gc
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from tqdm import tqdm

from medsd_jax.cli.main import exit_code
from medsd_jax.errors import UserError


def _says(call, capsys):
    code = exit_code(call)
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("medsd_jax: error: ") and err.count("\n") == 1
    return err


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, capsys):
    assert f"{tmp_path}: Is a directory" in _says(lambda: tmp_path.read_text(), capsys)


def test_a_full_disk_names_the_file_that_was_open(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")

    def write():
        with path.open("w") as file:
            file.write("1\n")

    message = _says(write, capsys)
    assert (
        str(path) in message
        and "No space left on device" in message
        and "free some space" in message
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("write of /data/x.array_record failed: No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing /data/x.array_record: Disk quota exceeded"),
    ],
)
def test_a_librarys_own_error_about_the_disk(error, capsys):
    def call():
        raise error

    message = _says(call, capsys)
    assert "/data/x.array_record" in message and str(error).split(": ")[-1] in message
    assert "free some space" in message


def test_a_librarys_error_that_hides_the_systems(capsys):
    def call():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/d/manifest")
        except OSError as error:
            raise ValueError("a page about a checkpoint") from error

    assert "/data/d/manifest: No space left on device" in _says(call, capsys)


def test_nesting_text_and_memory(tmp_path, capsys):
    deep, latin = tmp_path / "deep.json", tmp_path / "latin.txt"
    deep.write_text("[" * 100_000)
    latin.write_bytes(b"\xff")
    assert f"{deep}: nested too deeply" in _says(lambda: _read_json(deep), capsys)
    assert str(latin) in _says(lambda: latin.read_text(encoding="utf-8"), capsys)
    assert "not enough memory" in _says(lambda: np.zeros((10**9, 10**8)), capsys)


def test_a_devices_memory(capsys):
    class JaxRuntimeError(RuntimeError):
        pass

    def call():
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes. A page.")

    assert "Out of memory allocating 9 bytes; use a smaller batch" in _says(call, capsys)


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("x"), AssertionError()])
def test_a_bug_passes_through(error):
    def call():
        raise error

    with pytest.raises(type(error)):
        exit_code(call)


def test_a_bug_after_a_missing_file_passes_through(tmp_path):
    def call():
        try:
            (tmp_path / "x").read_text()
        except FileNotFoundError:
            return {}["x"]

    with pytest.raises(KeyError):
        exit_code(call)


def test_weights_on_a_full_disk_and_their_mode(tmp_path):
    """In a process of its own, whose files may not grow beyond 4,000 bytes."""
    code = """
import os, resource, sys
from pathlib import Path
import numpy as np
from medsd_jax.cli.main import exit_code
from medsd_jax.files import save_tensors
os.umask(0o027)
path = Path(sys.argv[1])
save_tensors(path, {"x": np.zeros(9, np.float32)})
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.exit(exit_code(lambda: save_tensors(path, {"x": np.zeros(9999, np.float32)})))
"""
    path = tmp_path / "x.safetensors"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr == f"medsd_jax: error: cannot write {path}: File too large\n"
    assert list(tmp_path.iterdir()) == [path]  # the part is gone, the old file is whole
    assert path.stat().st_size < 4000 and path.stat().st_mode & 0o777 == 0o640


def _read_json(path):
    return json.loads(path.read_text())


def test_nothing_follows_the_line_about_a_full_disk():
    """Not from a thread, nor from an exit handler, nor from the log of a library."""
    code = """
import atexit, errno, logging, os, sys, threading
from medsd_jax.cli.main import exit_code

def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")

def run():
    atexit.register(full)
    try:
        full()
    except OSError:
        logging.getLogger("absl").error("the save failed", exc_info=True)
        raise

code = exit_code(run)
thread = threading.Thread(target=full)
thread.start()
thread.join()
sys.exit(code)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "ERROR absl: the save failed",
        "medsd_jax: error: /data/x: No space left on device; free some space and run the same "
        "command again",
    ]


def test_what_the_disk_does_to_a_thread_is_a_line_too(caplog, capsys):
    """TensorBoard's writer finds a full disk before the training does, and goes on after us."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/events")

    def fail(error):
        raise error

    def call():
        thread = threading.Thread(target=fail, args=[full])
        thread.start()
        thread.join()

    before = threading.excepthook
    assert exit_code(call) == 0
    assert threading.excepthook is before
    (line,) = caplog.messages
    assert "a thread has ended: /data/events: No space left on device" in line
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_a_thread_keeps_its_traceback(monkeypatch):
    result = []
    monkeypatch.setattr(threading, "excepthook", result.append)

    def call():
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    assert exit_code(call) == 0
    assert result[0].exc_type is ZeroDivisionError


def test_no_progress_bar_is_drawn_after_the_last_line(capsys):
    def call():
        steps = iter(tqdm(range(3), mininterval=0))  # held by the exception's traceback
        next(steps)
        raise UserError("that is it")

    assert exit_code(call) == 2
    gc.collect()  # where a bar that nobody closed would be drawn again
    assert capsys.readouterr().err.endswith("medsd_jax: error: that is it\n")

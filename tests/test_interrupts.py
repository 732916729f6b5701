"""Signals of a program, as a process: Python's own handlers cannot be tried inside of pytest."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = """
import os, signal, sys, time
from medsd_jax import interrupts
def send(number=signal.SIGTERM): os.kill(os.getpid(), number)
"""
ONE_LINE = "medsd_jax: interrupted\n"
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])


def python(code):
    words = [sys.executable, "-c", START + code]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def module(tmp_path):
    """Writes a module, the body of a command, and gives the code that runs it as a script."""

    def write(code):
        (tmp_path / "body.py").write_text(START + code)
        return (
            f"import medsd_jax.cli\nmedsd_jax.cli.__path__.append({str(tmp_path)!r})\n"
            "from medsd_jax.cli.main import run_script\nsys.exit(run_script('body'))"
        )

    return write


@BOTH
def test_a_signal_while_a_library_that_swallows_it_is_imported(module, number):
    swallows = f"try:\n    send({number:d})\nexcept BaseException: pass\n"
    done = python(module(swallows + "def run_words(*_): print('ran to its end')"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", ONE_LINE)


@BOTH
def test_a_signal_before_anybody_can_tell_of_it(number):
    code = f"""
from medsd_jax.cli.main import exit_code
with interrupts.program():
    send({number:d})
    code = exit_code(lambda: print("ran"))
sys.exit(code)
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", ONE_LINE)


@BOTH
def test_a_signal_in_the_work(module, number):
    done = python(module(f"def run_words(*_):\n    send({number:d})\n    print('went on')"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", ONE_LINE)


@BOTH
def test_a_swallowed_signal_stops_a_training_at_its_first_step(module, number):
    body = f"""
def run_words(*_):
    try:
        send({number:d})
    except BaseException:
        pass
    with interrupts.Interrupt() as interrupted:
        print(bool(interrupted))
"""
    assert python(module(body)).stdout == "True\n"


@BOTH
def test_a_swallowed_signal_stops_the_next_part_of_long_work(module, number):
    body = f"""
class Swallows:
    def __del__(self):
        send({number:d})

def run_words(*_):
    for part in range(3):
        interrupts.stop_if_asked()
        print(part)
        Swallows()
"""
    done = python(module(body))
    assert (done.returncode, done.stdout, done.stderr) == (130, "0\n", ONE_LINE)


@BOTH
def test_a_training_notes_the_first_and_ends_by_the_second(module, number):
    body = f"""
def run_words(*_):
    with interrupts.Interrupt() as interrupted:
        send({number:d})
        print(bool(interrupted), flush=True)
        send({number:d})
        print('went on')
"""
    done = python(module(body))
    assert (done.returncode, done.stdout) == (-number, "True\n")


@BOTH
def test_a_second_signal_ends_a_call_that_lets_no_handler_run(module, number):
    """As the compilation of a model, which takes minutes."""
    body = """
import hashlib
def run_words(*_):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # ten minutes
"""
    process = subprocess.Popen(
        [sys.executable, "-c", START + module(body)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "busy\n"
        for _ in range(2):
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(number)
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
        process.communicate()


@BOTH
def test_a_signal_while_the_other_processes_do_not_come(number):
    """JAX waits for five minutes, and lets no handler run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = f"""
import jax, threading
from medsd_jax.parallel import launch, start
def body():
    threading.Timer(1.0, send, [{number:d}]).start()
    start._join(launch.Launch("a test", 2, 1, "localhost:{port}"), 1)
from medsd_jax.cli.main import exit_code
with interrupts.program():
    sys.exit(exit_code(body))
"""
    done = python(code)
    assert done.returncode == 130
    assert done.stderr.endswith(ONE_LINE)


@BOTH
def test_what_was_ignored_at_the_start_stays_ignored(module, number):
    body = f"""
def run_words(*_):
    send({number:d})
    with interrupts.Interrupt() as interrupted:
        send({number:d})
        print(bool(interrupted))
"""
    # As nohup and a shell's "&" do it.
    words = ["sh", "-c", f"trap '' {number:d}; exec \"$@\"", "sh", sys.executable, "-c"]
    ignored = subprocess.run(
        [*words, START + module(body)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ignored.returncode, ignored.stdout) == (0, "False\n")


@BOTH
def test_a_signal_after_the_work_changes_nothing(module, number):
    body = f"import atexit\natexit.register(send, {number:d})\ndef run_words(*_): print('done')"
    done = python(module(body))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_signals_are_taken_back_from_the_library_that_joins_processes():
    """It answers SIGTERM by a line in the log, in C++, and the program would go on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = f"""
import jax
from medsd_jax.parallel import launch, start
joined = launch.Launch("a test", 1, 0, "localhost:{port}")
with interrupts.program(), interrupts.working():
    start._join(joined, 1)
    try:
        send()
        time.sleep(1)
    except KeyboardInterrupt:
        print("ours")
"""
    assert python(code).stdout == "ours\n"


@BOTH
def test_a_notebook_has_its_own_handlers_back(number):
    """Without a program around it: after the first signal, and after the block."""
    before = signal.getsignal(number)
    from medsd_jax.interrupts import Interrupt

    with Interrupt() as interrupted:
        assert not interrupted
        os.kill(os.getpid(), number)
        assert interrupted
        assert signal.getsignal(number) is before
    with Interrupt() as interrupted:
        assert not interrupted
    assert signal.getsignal(number) is before


@BOTH
def test_what_a_training_does_between_its_steps_ends_before_it_stops(module, number):
    """An evaluation that stopped by itself would take the steps since the last checkpoint along."""
    body = f"""
def run_words(*_):
    with interrupts.Interrupt() as interrupted:
        send({number:d})
        interrupts.stop_if_asked()
        print("evaluated, saved:", bool(interrupted))
    interrupts.stop_if_asked()
    print("went on")
"""
    done = python(module(body))
    assert (done.returncode, done.stdout) == (130, "evaluated, saved: True\n")
    assert done.stderr == ONE_LINE

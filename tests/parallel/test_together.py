"""Two real processes of one run: whatever ends one early, the other one ends with its code."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.tiny.run import ROOT

CODE = """
import os, signal, sys, time
number, port, how = sys.argv[1:]
from medsd_jax.interrupts import program
with program():
    import jax
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    from medsd_jax.parallel import together
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.cli.main import exit_code
    from medsd_jax.errors import UserError
    from medsd_jax.parallel.multihost import true_everywhere
    together._GRACE_SECONDS = 4.0

    def body():
        start_devices()
        true_everywhere(True)
        if number == how[-1]:
            time.sleep(0.5)
            if how.startswith("signal"):
                os.kill(os.getpid(), signal.SIGTERM)
            if how.startswith("mistake"):
                raise UserError("a mistake of one host")
            if how.startswith("bug"):
                1 / 0
            return
        if how.startswith("signal"):
            while True:
                time.sleep(0.1)  # as at work by itself
        if not how.startswith("well"):
            true_everywhere(True)  # waits for ever
    code = exit_code(body)
sys.exit(code)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("signal 1", 130, "medsd_jax: process 1 has ended (interrupted), and so does this\n"),
        ("mistake 0", 2, "medsd_jax: process 0 has ended (a mistake of one host), and so "),
        ("bug 1", 1, "medsd_jax: process 1 has ended (ZeroDivisionError), and so does this\n"),
        ("well 0", 0, ""),
    ],
)
def test_what_ends_one_process_ends_the_other(how, code, message):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(number), str(port), how],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        errors = [process.communicate(timeout=100)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [code, code], errors
    assert message in errors[1 - int(how[-1])]
    assert time.monotonic() - began < 90

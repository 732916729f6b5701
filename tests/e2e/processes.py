"""Starts a program as several processes that share eight devices."""

import os
import socket
import subprocess
import sys

from tests.tiny.run import ROOT

START = """
import sys
from pathlib import Path
import jax
number, count, port, *words = sys.argv[1:]
jax.config.update("jax_disable_most_optimizations", True)
if int(count) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(count), int(number))
"""


def run(code: str, count: int, *words) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, (number, count, port, *words))],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, errors

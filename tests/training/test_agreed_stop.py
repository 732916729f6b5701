"""Two real processes, told to stop at different steps: they save the same one, and all end."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 26

CODE = """
import json, os, signal, sys
from pathlib import Path
import jax
import numpy as np

number, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, number)
from medsd_jax.cli.main import exit_code
from medsd_jax.parallel.mesh import make_mesh, process_rows
from medsd_jax.parallel.multihost import fetch, true_everywhere
from medsd_jax.training.metrics import read_scalars
from tests.tiny import toy_run

mesh = make_mesh({"data": 4, "fsdp": 2})
whole = toy_run.ToyBatches.__next__
toy_run.ToyBatches.__next__ = lambda self: {"x": whole(self)["x"][process_rows(mesh, 8)]}

def train(name, on_batch=lambda position: None):
    true_everywhere(True)  # nobody starts before the other one has ended
    run, result = toy_run.ToyRun(folder / name), {}
    run.validation = None
    def body():
        result.update({k: fetch(x) for k, x in run(STEPS, on_batch=on_batch).items()})
    code = exit_code(body)
    checkpoints = sorted(int(path.name) for path in (run.workdir / "checkpoints").iterdir())
    losses = [row["train/loss"] for row in read_scalars(run.workdir)] if number == 0 else []
    return {"code": code, "checkpoints": checkpoints}, result, losses

_, straight, losses = train("straight")
signals = {"different": (20, 24), "one only": (None, 9)}
results = {}
for name, steps in signals.items():
    stop_at = lambda now: now == steps[number] and os.kill(os.getpid(), signal.SIGTERM)
    results[name], _, _ = train(name, stop_at)
    resumed, weights, again = train(name)
    results[name]["resumed"] = resumed["code"]
    results[name]["equal"] = again == losses and straight.keys() == weights.keys() and all(
        np.array_equal(straight[k], weights[k]) for k in straight
    )
(folder / f"{number}.json").write_text(json.dumps(results))
"""


@pytest.mark.timeout(180)
def test_processes_that_are_reported_at_different_steps_save_the_same_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=4"
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                CODE.replace("STEPS", str(STEPS)),
                str(number),
                str(port),
                tmp_path,
            ],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        errors = [process.communicate(timeout=150)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], errors
    results = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert results[0] == results[1]
    for name, (earliest, latest) in {"different": (20, 23), "one only": (9, 12)}.items():
        result = results[0][name]
        (step,) = result["checkpoints"]
        assert earliest <= step <= latest, (name, step)
        assert result["code"] == 130 and result["resumed"] == 0 and result["equal"], (name, result)

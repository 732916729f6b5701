"""One run at a time in a folder, against real second processes."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from medsd_jax.cli.main import exit_code, main
from medsd_jax.locks import LOCK_FILE
from medsd_jax.workflows.workdir import working_in
from tests.commands import train
from tests.tiny.run import ROOT

HOLD = """
import sys, time
from pathlib import Path
from medsd_jax.workflows.workdir import working_in
with working_in(Path(sys.argv[1]), "a training"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder that another process works in, and that process."""
    folder = tmp_path_factory.mktemp("held") / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.communicate()


def by_recipe(name, *words):
    config = ["--config", str(ROOT / "configs" / f"{name}.py"), *words]
    return lambda folder: [*config, "--workdir", str(folder)]


MODEL = "--config.model.path=absent"
PROJECTION = [MODEL, "--config.encoder.path=absent", "--config.data.prompts=absent"]
COMMANDS = {
    "train": by_recipe("finetune", MODEL),
    "train-classifier": by_recipe("demo_classifier"),
    "train-projection": by_recipe("text_projection", *PROJECTION),
    "downstream-utility": by_recipe("demo_downstream_utility", "--config.synthetic.path=absent"),
    "reproduce": lambda folder: ["--scale", "phantom", "--output", str(folder)],
    "demo": lambda folder: ["--output", str(folder)],
    "evaluate": lambda folder: [
        "--real", "phantom", "--synthetic", "absent", "--output", str(folder)
    ],
    "reconstruct": lambda folder: ["--model", "absent", "--real", "x", "--output", str(folder)],
    "probe-text": lambda folder: [
        "--encoder", "absent", "--source", "phantom", "--output", str(folder)
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_folder_in_use(command, held, capsys):
    folder, other = held
    words = COMMANDS[command](folder)
    call = train if command == "train" else lambda rest: main([*command.split(), *rest])
    assert exit_code(lambda: call(words)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder} is in use by a training of process {other.pid} on" in last, last
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]


def test_a_killed_run_keeps_nobody_out(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    part = tmp_path / "run" / ".config.json.0123abcd.json"
    part.write_text("half")
    with working_in(tmp_path / "run", "a training"):
        assert not part.exists()
        (tmp_path / "run" / "model").mkdir()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_a_folder_that_nothing_came_into_is_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), working_in(tmp_path / "new", "a training"):
        raise KeyboardInterrupt
    (tmp_path / "there").mkdir()
    with working_in(tmp_path / "there", "a training"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


TRAIN = """
import sys, time
from pathlib import Path
from medsd_jax.cli.main import exit_code
from medsd_jax.workflows.workdir import working_in
from tests.tiny.toy_run import ToyRun
workdir, go = map(Path, sys.argv[1:])
def until_the_other_has_ended(position):
    while position == 3 and not go.exists():
        time.sleep(0.05)
def body():
    with working_in(workdir, "a training"):
        ToyRun(workdir)(6, checkpoint_every=2, on_batch=until_the_other_has_ended)
sys.exit(exit_code(body))
"""


@pytest.mark.timeout(180)
def test_of_two_trainings_at_once_one_goes_on(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tmp_path / "run"), str(tmp_path / "go")],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    while all(process.poll() is None for process in started):
        time.sleep(0.05)
    (tmp_path / "go").touch()
    errors = [process.communicate()[1] for process in started]
    by_code = {
        process.returncode: message for process, message in zip(started, errors, strict=True)
    }
    assert sorted(by_code) == [0, 2], errors
    assert "is in use by a training of process" in by_code[2].splitlines()[-1]
    assert "Traceback" not in by_code[2]
    assert not (tmp_path / "run" / LOCK_FILE).exists()


TWO = """
import sys
from pathlib import Path
import jax
number, port, folder = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(number))
from medsd_jax.cli.main import exit_code
from medsd_jax.workflows.workdir import working_in
def body():
    with working_in(Path(folder), "a training"):
        print("went on")
sys.exit(exit_code(body))
"""


@pytest.mark.timeout(120)
def test_all_processes_of_a_run_are_refused(held):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(number), str(port), str(held[0])],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2], outputs
    assert "went on" not in outputs[0][0] + outputs[1][0]
    assert f"in use by a training of process {held[1].pid}" in outputs[0][1]
    assert "see the main process" in outputs[1][1]

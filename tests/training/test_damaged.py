"""What disks and people do to a run's files between two commands: an older whole one is used."""

import json
import logging
import os
import shutil
import signal

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.training.checksums import CHECKSUMS, find_damage
from medsd_jax.training.metrics import read_scalars
from tests.tiny.toy_run import ToyRun


def files_of(step):
    return [path for path in sorted(step.rglob("*")) if path.is_file()]


def largest(step):
    return max(files_of(step / "state"), key=lambda path: path.stat().st_size)


def cut(step):
    for path in files_of(step):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite_arrays(step):
    for path in files_of(step / "state"):
        if path.parent.name == "d":
            path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def flip_one_bit(step):
    path = largest(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def run_no_json(step):
    (step / "run/metadata").write_text("{")


def run_another_json(step):
    (step / "run/metadata").write_text("[1]")


def no_tree(step):
    (step / "state/_METADATA").unlink()


DAMAGES = [cut, overwrite_arrays, flip_one_bit, empty, run_no_json, run_another_json, no_tree]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 2 and 4 of six, and what all six steps give."""
    workdir = tmp_path_factory.mktemp("saved")
    ToyRun(workdir / "run")(4, checkpoint_every=2)
    whole = workdir / "whole"
    shutil.copytree(workdir / "run", whole)
    return workdir / "run", ToyRun(whole)(6)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_checkpoint_is_named_and_the_older_one_used(saved, tmp_path, damage, caplog):
    workdir, expected = saved
    shutil.copytree(workdir, tmp_path / "run")
    damage(tmp_path / "run/checkpoints/4")
    with caplog.at_level(logging.WARNING):
        result = ToyRun(tmp_path / "run")(6)
    message = [record.getMessage() for record in caplog.records]
    assert len(message) == 1 and "\n" not in message[0]
    assert "damaged (4: " in message[0] and "goes on from step 2" in message[0]
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)
    steps = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert steps == {"2", "6"}
    assert (tmp_path / "run/damaged_checkpoints/4").is_dir()
    trained = [row["step"] for row in read_scalars(tmp_path / "run") if "train/loss" in row]
    assert trained == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_whole_checkpoint_is_one_line_that_names_the_folder(saved, tmp_path, damage):
    shutil.copytree(saved[0], tmp_path / "run")
    for step in (tmp_path / "run/checkpoints").iterdir():
        damage(step)
    with pytest.raises(UserError) as refused:
        ToyRun(tmp_path / "run")(6)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 600
    assert f"{tmp_path}/run/checkpoints holds no checkpoint that is whole (4: " in message
    assert "remove that folder" in message
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"2", "4"}


@pytest.mark.parametrize("damage", [run_no_json, run_another_json, empty])
def test_checkpoint_of_an_earlier_version_has_no_checksums(saved, tmp_path, damage, caplog):
    shutil.copytree(saved[0], tmp_path / "run")
    for step in (tmp_path / "run/checkpoints").iterdir():
        (step / CHECKSUMS).unlink()
    assert find_damage(tmp_path / "run/checkpoints/4") is None
    damage(tmp_path / "run/checkpoints/4")
    with caplog.at_level(logging.WARNING):
        ToyRun(tmp_path / "run")(6)
    assert "goes on from step 2" in caplog.text


def test_what_the_system_refuses_is_no_damage(saved, tmp_path, monkeypatch):
    shutil.copytree(saved[0], tmp_path / "run")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("medsd_jax.training.checkpoint.Checkpoints._check_fits", refused)
    with pytest.raises(PermissionError):
        ToyRun(tmp_path / "run")(6)
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"2", "4"}


@pytest.mark.parametrize(
    ("added", "lost"),
    [
        (b'[1]\n{"step": "x"}\n3\n', 3),
        (b"\xff\xfe\x00\n", 1),
        (b"[" * 100_000 + b"\n", 1),
        (b'{"step": 9, "train/loss": {"a": 1}}\n', 1),
        (b'{"step": 3, "train/lo', 0),  # what a killed run was writing
    ],
)
def test_foreign_lines_of_the_curves_are_counted_and_left_out(saved, tmp_path, added, lost, caplog):
    shutil.copytree(saved[0], tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    before = read_scalars(tmp_path / "run")
    path.write_bytes(path.read_bytes() + added)
    with caplog.at_level(logging.WARNING):
        ToyRun(tmp_path / "run")(6)
    message = [record.getMessage() for record in caplog.records]
    assert len(message) == (lost > 0) and all(f"{lost} lines" in line for line in message)
    rows = read_scalars(tmp_path / "run")
    assert rows[: len(before)] == before
    assert [r["step"] for r in rows if "train/loss" in r] == [1, 2, 3, 4, 5, 6]


def curves(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "images_per_second" not in k} for row in rows]


@pytest.mark.parametrize("at", [1, 2, 4, 5])
@pytest.mark.parametrize("checkpoint_every", [100, 2])
def test_interrupt_between_two_lines_of_the_curves_leaves_them_as_they_are(
    tmp_path, at, checkpoint_every
):
    settings = {"log_every": 3, "checkpoint_every": checkpoint_every}
    ToyRun(tmp_path / "straight")(8, **settings)
    run = ToyRun(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(8, on_batch=lambda now: now == at and os.kill(os.getpid(), signal.SIGINT), **settings)
    run(8, **settings)
    assert curves(tmp_path / "stopped") == curves(tmp_path / "straight")
    trained = [r["step"] for r in curves(tmp_path / "stopped") if "train/loss" in r]
    assert trained == [3, 6, 8]

"""Folders that change as a whole: after kills, for readers beside a writer, for two writers."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from medsd_jax import folders
from medsd_jax.errors import UserError
from medsd_jax.folders import (
    alone_at,
    beside,
    new_folder,
    read_whole,
    remove_leftovers,
    replacing,
    wait_until_seen,
)
from medsd_jax.interop import diffusers_folder
from medsd_jax.locks import lock
from medsd_jax.workflows.models import load, save
from tests.tiny.pipeline import tiny_pipeline

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("writer", "fewest"),
    [
        ("model", 40),
        ("model over another", 50),
        ("sampling", 15),
        pytest.param("best", 80, marks=pytest.mark.slow),
        ("latents", 5),
        ("export-images", 40),
        ("export of images", 15),
        ("prepared data", 5),
    ],
)
def test_killed_at_any_change_of_the_file_system_the_same_call_goes_on(tmp_path, writer, fewest):
    words = [sys.executable, "-W", "ignore", "-m", "tests.kill_points", str(tmp_path), writer]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["wrong"] == []
    assert result["points"] >= fewest


def _write(folder, number):
    with replacing(folder, "a test", last="z") as new:
        for name in ("a", "b", "z"):
            (new / name).write_text(str(number))
            time.sleep(0.0005)


def test_a_reader_beside_a_writer_gets_the_old_or_the_new(tmp_path):
    folder, done = tmp_path / "x", threading.Event()
    _write(folder, 0)

    def write():
        for number in range(1, 150):
            _write(folder, number)
            time.sleep(0.005)
        done.set()

    def read():
        result = []
        for name in ("a", "b", "z"):
            result.append((folder / name).read_text())
            time.sleep(0.001)
        return result

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not done.is_set():
        result = read_whole(folder, "z", read)
        assert len(set(result)) == 1
        seen.add(result[0])
    thread.join()
    assert len(seen) > 10
    assert sorted(os.listdir(folder)) == ["a", "b", "z"]


def test_a_model_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    old = tiny_pipeline()
    new = dataclasses.replace(old, params={k: x + 1 for k, x in old.params.items()})
    save(old, tmp_path / "m")
    read_params, reads = diffusers_folder._read_params, []

    def replaced_after_the_first_part(*args):
        result = read_params(*args)
        reads.append(1)
        if len(reads) == 1:
            save(new, tmp_path / "m")
        return result

    monkeypatch.setattr(diffusers_folder, "_read_params", replaced_after_the_first_part)
    result = load(tmp_path / "m")
    for name, x in new.params.items():
        np.testing.assert_array_equal(result.params[name], x, err_msg=name)


def test_an_error_of_a_folder_that_stays_is_reported_at_once(tmp_path):
    _write(tmp_path / "x", 1)

    def damaged():
        raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
        read_whole(tmp_path / "x", "z", damaged)


def test_what_is_neither_new_nor_owned_stays(tmp_path):
    for name in ("mine", "stale", "a"):
        (tmp_path / name).write_text("old")
    with replacing(tmp_path, "a test", last="a", owned=("stale",)) as new:
        (new / "a").write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"mine": "old", "a": "new"}


def test_a_failure_leaves_what_was_there(tmp_path):
    _write(tmp_path / "x", 1)
    for folder in (tmp_path / "x", tmp_path / "y"):
        with pytest.raises(ZeroDivisionError), replacing(folder, "a test", last="z") as new:
            (new / "a").write_text("2")
            _ = 1 / 0
    assert not (tmp_path / "y").exists()
    assert {p.name: p.read_text() for p in (tmp_path / "x").iterdir()} == dict.fromkeys("abz", "1")


def test_a_new_folder_is_nobodys(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with (
        pytest.raises(UserError, match="not an empty folder"),
        new_folder(tmp_path, "a test", last="z"),
    ):
        pass
    # What a killed run left here does not make another program's file its own.
    (tmp_path / ".medsd_jax-lock").touch()
    with (
        pytest.raises(UserError, match="not an empty folder"),
        new_folder(tmp_path, "a test", last="z") as new,
    ):
        (new / "z").touch()
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_leftovers_go_only_when_their_owner_is_dead(tmp_path):
    with beside(tmp_path / "x") as mine:
        code = "import sys, os; from pathlib import Path; from medsd_jax.folders import beside\n"
        code += "with beside(Path(sys.argv[1])) as at: (at / 'f').touch(); os._exit(9)"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False)
        assert len(list(tmp_path.glob(".x.*.unfinished"))) == 2
        (tmp_path / ".bashrc").touch()
        remove_leftovers(tmp_path)
        assert list(tmp_path.glob(".x.*.unfinished")) == [mine]
    assert os.listdir(tmp_path) == [".bashrc"]


def test_a_model_folder_that_another_process_writes(tmp_path, monkeypatch):
    """Within its patience a save waits; then it says who is in the way."""
    monkeypatch.setattr("medsd_jax.folders._WAIT_SECONDS", 0.1)
    refused = []

    def second():
        try:
            save(tiny_pipeline(), tmp_path / "m")
        except UserError as error:
            refused.append(str(error))

    with lock(tmp_path / "m", "a test"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"{tmp_path / 'm'} is in use by" in refused[0]
    assert f"process {os.getpid()}" in refused[0]


def test_who_comes_second_to_a_file_finds_it_made(tmp_path):
    target, made = tmp_path / "target", []

    def make(name):
        with alone_at(target):
            if not target.exists():
                made.append(name)
                time.sleep(0.2)
                target.write_text(name)

    threads = [threading.Thread(target=make, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [target.read_text()]
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_maker_keeps_nobody_waiting(tmp_path):
    code = """
import os, sys
from pathlib import Path
from medsd_jax.folders import alone_at
with alone_at(Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "target"], cwd=ROOT, check=False)
    assert [path.name for path in tmp_path.iterdir()] == [".target.lock"]
    with alone_at(tmp_path / "target"):
        pass
    assert not any(tmp_path.iterdir())


def test_what_another_host_wrote_is_waited_for(tmp_path, monkeypatch):
    late = threading.Timer(0.1, (tmp_path / "file").touch)
    late.start()
    wait_until_seen(tmp_path / "file")
    assert (tmp_path / "file").exists()
    monkeypatch.setattr(folders, "_WAIT_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"other was written by another process, but.*shared\?"):
        wait_until_seen(tmp_path / "other")


@pytest.mark.parametrize("text", ["", "[]", '{"last": "b"}', "\xff"])
def test_a_damaged_list_of_what_moves_is_one_line(tmp_path, text):
    """For the next writer and for a reader, which does not wait for what never comes."""
    moving = tmp_path / ".medsd_jax-complete"
    moving.mkdir()
    (moving / "b").write_text("new")
    (moving / ".entries.json").write_bytes(text.encode("latin-1"))
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=r"entries\.json is damaged .*remove"),
        replacing(tmp_path, "a test", last="b"),
    ):
        pass
    with pytest.raises(UserError, match=r"entries\.json is damaged .*remove"):
        read_whole(tmp_path, "b", lambda: None)
    assert time.monotonic() - began < 10

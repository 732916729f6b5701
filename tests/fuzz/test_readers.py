"""Every reader of files, on damaged and strange ones: a result or one line, and no other end.

`make test` reads the same few inputs each time. `make test-all` goes on for $MEDSD_FUZZ_SECONDS a
reader, 10 if it is not set, from $MEDSD_FUZZ_SEED on; what was found is named by seed and number,
and its files stay in pytest's temporary folder.
"""

import logging
import os
import resource
import time
import traceback
from pathlib import Path

import pytest

from medsd_jax.cli.edge import reason
from medsd_jax.data.stored_image import UnreadableImageError
from medsd_jax.errors import UserError
from tests.fuzz import data_files, model_files, run_files
from tests.fuzz.mutations import Mutator

TARGETS = {**data_files.TARGETS, **model_files.TARGETS, **run_files.TARGETS}
QUICK = 25
MAX_SECONDS = 10.0
MAX_GIBIBYTES = 1.5
"""More than the largest image that Pillow's limit lets pass takes."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)


def _problem(read, mutator: Mutator) -> str | None:
    """What is wrong with how a reader took an input; None where nothing is."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(mutator)
    except (UserError, UnreadableImageError) as error:
        if not str(error).strip():
            return "was refused without a word"
    except Exception as error:
        if reason(error) is None:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "medsd_jax" in frame.filename] or frames
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            return f"{type(error).__name__} at {where}: {str(error)[:300]}"
    if (seconds := time.process_time() - began) > MAX_SECONDS:
        return f"took {seconds:.0f} s"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return f"took {grown:.1f} GiB" if grown > MAX_GIBIBYTES else None


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name, tmp_path):
    read = TARGETS[name](tmp_path)
    for number in range(QUICK):
        problem = _problem(read, Mutator(f"quick {name} {number}"))
        assert problem is None, f"input {number}: {problem}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_files(name, tmp_path):
    seed = os.environ.get("MEDSD_FUZZ_SEED", "0")
    end = time.monotonic() + float(os.environ.get("MEDSD_FUZZ_SECONDS", "10"))
    read, number = TARGETS[name](tmp_path), 0
    while time.monotonic() < end:
        problem = _problem(read, Mutator(f"{seed} {name} {number}"))
        assert problem is None, f"seed {seed}, input {number}: {problem}"
        number += 1


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_read(name, tmp_path):
    """Otherwise a target would see refusals alone, of its own mistakes."""
    TARGETS[name](tmp_path)(Whole(name))


class Whole(Mutator):
    """Changes nothing."""

    def chance(self, share):
        return False

    def bytes(self, content, most=6):
        return content

    def value(self, value, times=1):
        return value

    def table(self, rows):
        from tests.fuzz.mutations import _csv

        return _csv(rows)

    def image(self, encoded):
        return encoded

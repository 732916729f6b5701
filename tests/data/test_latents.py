"""The latents on disk: in the split's order, whole or not there."""

import subprocess
import sys

import numpy as np
import pytest

from medsd_jax.data.latents import encode_split
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.record_lists import RecordList
from medsd_jax.errors import UserError


def _encode(images):
    return images[:, ::4, ::4, :2].astype(np.float32)


def _cached(folder, encode=_encode):
    split = RecordList(phantom_records(num_images=5, image_size=16), "train", "x")
    return encode_split(
        split, encode, batch_size=2, image_size=16, resize_mode="pad", key="k", folder=folder
    )


def test_rows_are_the_splits_and_are_read_again(tmp_path):
    moments = _cached(tmp_path)
    assert moments.shape == (5, 4, 4, 2) and moments.dtype == np.float32
    one_by_one = np.concatenate(
        [
            encode_split(
                RecordList([record], "train", "x"),
                _encode,
                batch_size=1,
                image_size=16,
                resize_mode="pad",
                key=str(i),
                folder=tmp_path,
            )
            for i, record in enumerate(phantom_records(num_images=5, image_size=16))
        ]
    )
    np.testing.assert_array_equal(moments, one_by_one)
    np.testing.assert_array_equal(_cached(tmp_path, encode=None), moments)  # nothing is encoded


def test_numbers_that_are_not_finite_are_not_kept(tmp_path):
    """The last image of five, in the last batch."""
    calls = []

    def encode(images):
        calls.append(len(images))
        moments = np.array(_encode(images))
        if len(calls) == 3:
            moments[0, 1, 2, 1] = np.nan
        return moments

    key = next(iter(phantom_records(num_images=5, image_size=16)[4:])).key
    with pytest.raises(UserError, match=f"VAE's encoder gives numbers .* first is {key} of train"):
        _cached(tmp_path, encode)
    assert not any(tmp_path.iterdir())
    assert _cached(tmp_path).shape == (5, 4, 4, 2)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """In a process of its own, whose files may not grow beyond 300 bytes."""
    code = """
import resource, sys
from pathlib import Path
from medsd_jax.cli.main import exit_code
from tests.data.test_latents import _cached
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
sys.exit(exit_code(lambda: _cached(Path(sys.argv[1])) and 0))
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"medsd_jax: error: cannot write {tmp_path}/latents-train")
    assert last.endswith("File too large")
    assert not any(tmp_path.iterdir())
    assert len(_cached(tmp_path)) == 5

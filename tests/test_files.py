"""Files that are whole or not there."""

import json
import os

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.files import check_permission, content_hash, remove_parts, whole_file, write_json


def test_a_killed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "numbers.json"
    write_json(path, {"b": 1, "a": [2]})
    with pytest.raises(KeyboardInterrupt), whole_file(path) as part:
        part.write_text("{")
        assert json.loads(path.read_text()) == {"a": [2], "b": 1}
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": [2], "b": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_part_keeps_the_suffix_that_writers_go_by(tmp_path):
    path = tmp_path / "x.npy"
    with whole_file(path) as part:
        np.save(part, np.arange(3))  # which would add .npy to another name
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(np.load(path), np.arange(3))
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # others may read a shared cache


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "x.txt"
    with whole_file(path) as one, whole_file(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # it ended last
    assert list(tmp_path.iterdir()) == [path]


def test_content_hash_sees_values_shapes_types_and_what_is_missing():
    x = np.arange(6, dtype=np.int32)
    others = [x + 1, x.reshape(2, 3), x.astype(np.int64), x.astype(np.uint32)]
    hashes = [content_hash(y) for y in (x, *others)]
    hashes += [content_hash(x, None), content_hash(None, x), content_hash(), content_hash(None)]
    assert len(set(hashes)) == len(hashes)
    assert content_hash(x) == content_hash(x.copy())


def test_a_closed_folder_is_told_before_the_work(tmp_path, monkeypatch):
    check_permission(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may do anything
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/a/b: Permission denied"):
        check_permission(tmp_path / "a" / "b")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*/x/y\.json: No such file or directory"),
        whole_file(tmp_path / "x" / "y.json") as part,
    ):
        part.write_text("{}")


def test_only_our_own_hidden_parts_are_removed(tmp_path):
    for name in (".00001.0123abcd.png", ".bashrc", "00001.png", ".x.0123abcg.png"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".bashrc", ".x.0123abcg.png", "00001.png"]

"""Files that are whole or not there."""

import json
import os

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.files import (
    atomic_write,
    check_permission,
    content_hash,
    json_object,
    read_array,
    read_object,
    remove_parts,
    write_json,
)


def test_a_killed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "numbers.json"
    write_json(path, {"b": 1, "a": [2]})
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_text("{")
        assert json.loads(path.read_text()) == {"a": [2], "b": 1}
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": [2], "b": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_part_keeps_the_suffix_that_writers_go_by(tmp_path):
    path = tmp_path / "x.npy"
    with atomic_write(path) as part:
        np.save(part, np.arange(3))  # which would add .npy to another name
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(np.load(path), np.arange(3))
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # others may read a shared cache


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "x.txt"
    with atomic_write(path) as one, atomic_write(path) as other:
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


def test_a_closed_folder_is_reported_before_the_work(tmp_path, monkeypatch):
    check_permission(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may do anything
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/a/b: Permission denied"):
        check_permission(tmp_path / "a" / "b")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*/x/y\.json: No such file or directory"),
        atomic_write(tmp_path / "x" / "y.json") as part,
    ):
        part.write_text("{}")


def test_only_our_own_hidden_parts_are_removed(tmp_path):
    for name in (".00001.0123abcd.png", ".bashrc", "00001.png", ".x.0123abcg.png"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".bashrc", ".x.0123abcg.png", "00001.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; ask"),
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is nested too deep"),
        (b"[1]", "must hold a JSON object, not list; ask"),
        (b"null", "must hold a JSON object, not NoneType"),
        (b"9" * 5000, "is not valid JSON"),
    ],
    ids=["none", "empty", "cut", "utf16", "deep", "list", "null", "long"],
)
def test_a_file_that_is_no_json_object(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_object(path, "ask")
    assert str(path) in str(caught.value)


def test_a_loop_of_links_and_a_folder_are_no_json(tmp_path):
    (tmp_path / "a").symlink_to("a")
    (tmp_path / "b").mkdir()
    for name in "ab":
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_object(tmp_path / name, "ask")


def test_what_a_json_object_lacks_is_reported_with_its_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1]})
    for take in (lambda x: x["b"], lambda x: x["a"]["c"], lambda x: x["a"][5], lambda x: x.a):
        with (
            pytest.raises(UserError, match=r"a\.json does not hold what it should .*; ask"),
            json_object(tmp_path / "a.json", "ask") as result,
        ):
            take(result)


def test_arrays_of_others(tmp_path):
    np.save(tmp_path / "whole.npy", np.arange(6.0).reshape(2, 3))
    assert read_array(tmp_path / "whole.npy", "ask").shape == (2, 3)
    whole = (tmp_path / "whole.npy").read_bytes()
    contents = (b"", whole[:-1], whole[:40], whole.replace(b"(2, 3)", b"(2, (("), b"PK\3\4")
    for content in contents:
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npy cannot be read as a \.npy array .*; ask"):
            read_array(tmp_path / "a.npy", "ask")
    np.save(tmp_path / "o.npy", np.asarray([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="allow_pickle"):
        read_array(tmp_path / "o.npy", "ask")
    np.savez(tmp_path / "z.npz", a=np.arange(2))
    with pytest.raises(UserError, match="holds several arrays"):
        read_array(tmp_path / "z.npz", "ask")

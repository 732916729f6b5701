"""Which files a set holds, in which order, and what is said of those that cannot be read."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.evaluation.picture_sets import open_pictures, read_picture


def picture(path, value, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (6, 8) if mode == "L" else (6, 8, 3)
    Image.fromarray(np.full(shape, value, np.uint8), mode).save(path)


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "b.png", 2)
    picture(tmp_path / "a.JPG", 1)
    picture(tmp_path / "below" / "c.png", 3, "RGB")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_folder_is_read_in_order_with_its_subfolders(folder):
    pictures = open_pictures(folder)
    assert [p.name for p in pictures.paths] == ["a.JPG", "b.png", "c.png"]
    batches = list(pictures.batches(2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[0][1].shape == (6, 8) and batches[1][0].shape == (6, 8, 3)


def test_unreadable_files_are_named_and_counted(folder, caplog):
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:30])
    with caplog.at_level(logging.WARNING):
        pictures = open_pictures(folder)
    assert [name.rpartition("/")[2] for name in pictures.unreadable] == ["broken.png"]
    assert len(pictures) == 3 and "1 of 4 pictures left out" in caplog.text


def test_16_bit_pictures_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(OSError, match="8 bits"):
        read_picture(tmp_path / "deep.png")
    with pytest.raises(UserError, match="none of the 1 pictures"):
        open_pictures(tmp_path)


def test_fingerprint_follows_the_content_alone(folder, tmp_path_factory):
    before = open_pictures(folder).fingerprint
    moved = tmp_path_factory.mktemp("moved") / "x"
    folder.rename(moved)
    assert open_pictures(moved).fingerprint == before
    picture(moved / "b.png", 9)
    assert open_pictures(moved).fingerprint != before


@pytest.mark.parametrize("column", ["path", "Path", "img_savename", "synthetic_filename"])
def test_table_of_paths(folder, column):
    table = folder / "some.csv"
    table.write_text(f"id,{column}\n1,below/c.png\n2,a.JPG\n")
    assert [p.name for p in open_pictures(table).paths] == ["c.png", "a.JPG"]


def test_samples_are_taken_without_their_grid(folder):
    lines = [json.dumps({"file": name, "prompt": name}) for name in ("b.png", "a.JPG")]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    assert [p.name for p in open_pictures(folder).paths] == ["b.png", "a.JPG"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "absent", "does not exist"),
        (lambda p: p, "holds no picture"),
        (lambda p: _table(p, "id\n1\n"), "no column of paths"),
        (lambda p: _table(p, "path\n"), "names no picture"),
        (lambda p: _samples(p, ""), "names no picture"),
        (lambda p: _samples(p, '{"file": "a.png"}\n'), "line 1 is not as sample.py writes it"),
        (lambda p: _samples(p, "{half"), "line 1 is not as sample.py writes it"),
    ],
)
def test_mistakes_are_told(tmp_path, make, said):
    with pytest.raises(UserError, match=said):
        open_pictures(make(tmp_path))


def _table(folder, text):
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def _samples(folder, text):
    (folder / "samples.jsonl").write_text(text)
    return folder

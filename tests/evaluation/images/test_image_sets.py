"""Which files a set holds, in which order, and what is said of those that cannot be read."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.stored_image import read_pixels
from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import open_images

FINDINGS = ("no_finding", "pleural_effusion", "cardiomegaly", "pneumothorax")


def image(path, value, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (6, 8) if mode == "L" else (6, 8, 3)
    Image.fromarray(np.full(shape, value, np.uint8), mode).save(path)


def names(images):
    return [key.rpartition("/")[2] for key in images.keys]


@pytest.fixture
def folder(tmp_path):
    image(tmp_path / "b.png", 2)
    image(tmp_path / "a.JPG", 1)
    image(tmp_path / "below" / "c.png", 3, "RGB")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_is_read_in_order_with_its_subfolders(folder):
    images = open_images(folder)
    assert names(images) == ["a.JPG", "b.png", "c.png"]
    batches = list(images.batches(2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[0][1].shape == (6, 8) and batches[1][0].shape == (6, 8, 3)


def test_unreadable_files_are_named_and_counted(folder, caplog):
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:30])
    with caplog.at_level(logging.WARNING):
        images = open_images(folder)
    assert [name.rpartition("/")[2] for name in images.unreadable] == ["broken.png"]
    assert len(images) == 3 and "1 of 4 images left out" in caplog.text


def test_fingerprint_follows_the_content_alone(folder, tmp_path_factory):
    before = open_images(folder).fingerprint
    moved = tmp_path_factory.mktemp("moved") / "x"
    folder.rename(moved)
    assert open_images(moved).fingerprint == before
    image(moved / "b.png", 9)
    assert open_images(moved).fingerprint != before


@pytest.mark.parametrize("column", ["path", "Path", "img_savename", "synthetic_filename"])
def test_table_of_paths(folder, column):
    table = folder / "some.csv"
    table.write_text(f"id,{column}\n1,below/c.png\n2,a.JPG\n")
    images = open_images(table)
    assert names(images) == ["c.png", "a.JPG"] and images.ids == ("1", "2")


def test_samples_are_taken_without_their_grid(folder):
    lines = [json.dumps({"file": name, "prompt": name}) for name in ("b.png", "a.JPG")]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    assert names(open_images(folder)) == ["b.png", "a.JPG"]


def test_metadata_of_an_image_folder_is_read(folder):
    (folder / "metadata.csv").write_text(
        "file_name,text,patient_id,pleural_effusion,side\n"
        "b.png,Small effusion.,p1,1,left\nbelow/c.png,Clear.,p2,0,\nabsent.png,x,p3,1,\n"
    )
    images = open_images(folder)
    assert names(images) == ["b.png", "c.png"] and images.texts == ("Small effusion.", "Clear.")
    assert images.patient_ids == ("p1", "p2") and len(images.unreadable) == 1
    assert images.labels == ({"pleural_effusion": 1}, {"pleural_effusion": 0})


def test_prepared_data_sets_are_read_by_split(tmp_path):
    dataset = open_dataset("phantom", None, params={"num_images": 40, "image_size": 16},
                           cache_dir=tmp_path, progress=False)  # fmt: skip
    for split in (dataset.train, dataset.validation):
        for where in (tmp_path, dataset.info.folder):
            images = open_images(f"{where}:{split.name}")
            assert images.keys == split.keys and images.texts == split.texts
            assert images.patient_ids == split.patient_ids
            for result, stored in zip(images.labels, split.labels, strict=True):
                assert result.items() <= stored.items()
                assert result.keys() == {"sex", "view", "nodule", *FINDINGS}
        np.testing.assert_array_equal(images.read(1), read_pixels(split[1].read_bytes())[0])
    open_dataset("phantom", None, params={"num_images": 20, "image_size": 16}, cache_dir=tmp_path,
                 progress=False)  # fmt: skip
    with pytest.raises(UserError, match="not several"):
        open_images(f"{tmp_path}:train")
    with pytest.raises(UserError, match="not none"):
        open_images(f"{dataset.info.folder / 'records'}:train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent", "does not exist"),
        (lambda p: p, "holds no image"),
        (lambda p: _table(p, "id\n1\n"), "no column of paths"),
        (lambda p: _table(p, "path\n"), "names no image"),
        (lambda p: _samples(p, ""), "names no image"),
        (lambda p: _samples(p, '{"path": "a.png"}\n'), r"no column of paths \(one of file\)"),
        (lambda p: _samples(p, '{"file": "a"}\n{"prompt": ""}\n'), "line 2 has no file"),
        (lambda p: _samples(p, "{half"), "line 1 is not JSON"),
        (lambda p: _samples(p, "[1]"), "line 1 is not a JSON object"),
        (lambda p: _table(p, "path,x\na.png,1,2\n"), "line 2 has more cells"),
        (lambda p: _table(p, "path,chexpert_labels\na.png,Edema\n"), "are no object"),
    ],
)
def test_mistakes_are_reported(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        open_images(make(tmp_path))


def _table(folder, text):
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def _samples(folder, text):
    (folder / "samples.jsonl").write_text(text)
    return folder

"""Prepare once, reuse, prepare anew when something changed; no TensorFlow anywhere."""

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data import dataset as dataset_module
from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.records import Record, SourceRecords
from medsd_jax.data.transforms import decode
from medsd_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PHANTOM = {"num_images": 30, "image_size": 32}


def _open(tmp_path, **changes):
    arguments = {"params": PHANTOM, "cache_dir": tmp_path / "cache", "progress": False}
    return open_dataset("phantom", **arguments | changes)


def _folder(tmp_path, count=6):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["file_name,text,patient_id"]
    for i in range(count):
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,image {i},p{i // 2}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def _open_folder(folder, tmp_path, **changes):
    arguments = {"cache_dir": tmp_path / "cache", "progress": False} | changes
    return open_dataset("folder", folder, **arguments)


def test_records_come_back_unchanged_and_in_order(tmp_path):
    dataset = _open(tmp_path)
    original = {record.key: record for record in phantom_records(**PHANTOM)}
    seen = []
    for split in (dataset.train, dataset.validation):
        for index in range(len(split)):
            record, truth = split[index], original[split.keys[index]]
            seen.append(record.key)
            assert record.read_bytes() == truth.read_bytes()
            assert record.text == split.texts[index] == truth.text
            assert record.patient_id == split.patient_ids[index] == truth.patient_id
            assert record.labels == split.labels[index] == truth.labels
            assert record.split == split.name
        assert list(split.keys) == sorted(split.keys)
    assert sorted(seen) == sorted(original)
    assert set(dataset.train.patient_ids).isdisjoint(dataset.validation.patient_ids)


def test_info_counts(tmp_path):
    dataset = _open(tmp_path)
    info = dataset.info
    assert info.num_images == {"train": len(dataset.train), "validation": len(dataset.validation)}
    assert info.num_patients["train"] == len(set(dataset.train.patient_ids))
    assert "pleural_effusion" in info.label_names and not info.skipped
    assert any(str(len(dataset.train)) in line for line in info.lines())


def test_prepared_once_and_reused(tmp_path, monkeypatch):
    first = _open(tmp_path)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.info.folder.name]

    def fail(*_, **__):
        raise AssertionError("prepared twice")

    monkeypatch.setattr(dataset_module, "write_records", fail)
    again = _open(tmp_path)
    assert again.info == first.info and again.train.texts == first.train.texts
    with pytest.raises(AssertionError, match="prepared twice"):
        _open(tmp_path, params=PHANTOM | {"seed": 1})
    with pytest.raises(AssertionError, match="prepared twice"):
        _open(tmp_path, validation_fraction=0.5)


def test_changed_files_are_prepared_anew(tmp_path):
    folder = _folder(tmp_path)
    before = _open_folder(folder, tmp_path)
    Image.fromarray(np.full((9, 8), 7, np.uint8)).save(folder / "0.png")
    after = _open_folder(folder, tmp_path)
    assert before.info.fingerprint != after.info.fingerprint
    splits = (after.train, after.validation)
    (stored,) = (s[s.keys.index("0.png")].read_bytes() for s in splits if "0.png" in s.keys)
    assert decode(stored).shape == (9, 8, 3)
    os.utime(folder / "1.png", ns=(0, 0))
    assert _open_folder(folder, tmp_path).info.fingerprint != after.info.fingerprint
    metadata = folder / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("image 1", "another text"))
    assert "another text" in (
        _open_folder(folder, tmp_path).train.texts + _open_folder(folder, tmp_path).validation.texts
    )


def test_a_killed_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, *_, **__):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset_module, "write_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _open(tmp_path)
    assert not list((tmp_path / "cache").iterdir())
    assert len(_open(tmp_path).train) > 0


def test_unreadable_images_are_named_counted_and_skipped(tmp_path, caplog):
    folder = _folder(tmp_path)
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "4.png").write_bytes(b"not an image")
    with caplog.at_level(logging.WARNING, logger="medsd_jax"):
        dataset = _open_folder(folder, tmp_path)
    assert "2.png" in caplog.text and "4.png" in caplog.text
    assert len(dataset.train) + len(dataset.validation) == 4
    assert dataset.info.skipped == {"unreadable image": (2, ("2.png", "4.png"))}
    assert any("unreadable image: 2" in line for line in dataset.info.lines())


def test_no_readable_image_is_an_error(tmp_path):
    folder = _folder(tmp_path, 2)
    for i in range(2):
        (folder / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"no readable image.*2 unreadable image: 0\.png, 1\.png"):
        _open_folder(folder, tmp_path)
    assert not list((tmp_path / "cache").iterdir())


def test_no_image_at_all_is_an_error(tmp_path):
    folder = _folder(tmp_path, 1)
    (folder / "0.png").unlink()
    with pytest.raises(UserError, match=r"no readable image.*no such file: 0\.png"):
        _open_folder(folder, tmp_path)


def test_a_split_with_unreadable_images_only(tmp_path):
    folder = _folder(tmp_path, 2)
    (folder / "metadata.csv").write_text(
        "file_name,text,split\n0.png,a,train\n1.png,b,validation\n"
    )
    (folder / "1.png").write_bytes(b"broken")
    dataset = _open_folder(folder, tmp_path)
    assert len(dataset.train) == 1 and len(dataset.validation) == 0


def test_16_bit_images_are_converted_and_told(tmp_path, caplog):
    folder = _folder(tmp_path, 2)
    values = np.linspace(500, 3000, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(folder / "0.png")
    with caplog.at_level(logging.WARNING, logger="medsd_jax"):
        dataset = _open_folder(folder, tmp_path)
    assert "1 of 2 images converted: more than 8 bits" in caplog.text
    records = [s[i] for s in (dataset.train, dataset.validation) for i in range(len(s))]
    pixels = np.asarray(Image.open(io.BytesIO(next(r for r in records if r.key == "0.png").image)))
    np.testing.assert_array_equal(pixels, np.round((values - 500.0) / 2500 * 255))


def test_leak_in_the_split_column(tmp_path):
    folder = _folder(tmp_path, 2)
    (folder / "metadata.csv").write_text(
        "file_name,text,patient_id,split\n0.png,a,p,train\n1.png,b,p,validation\n"
    )
    with pytest.raises(UserError, match="patient 'p' is in train and in validation"):
        _open_folder(folder, tmp_path)


def test_leak_in_prepared_data_is_found_when_opened(tmp_path):
    dataset = _open(tmp_path)
    index = dataset.info.folder / "validation.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    rows[0]["patient_id"] = dataset.train.patient_ids[0]
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="in train and in validation"):
        _open(tmp_path)


def test_given_split_wins(tmp_path):
    folder = _folder(tmp_path, 4)
    lines = [f"{i}.png,t{i},{'val' if i == 2 else 'train'}" for i in range(4)]
    (folder / "metadata.csv").write_text("file_name,text,split\n" + "\n".join(lines))
    dataset = _open_folder(folder, tmp_path, validation_fraction=0.9)
    assert dataset.validation.keys == ("2.png",) and len(dataset.train) == 3


def test_odd_texts_survive(tmp_path, monkeypatch):
    image = phantom_records(1, image_size=16)[0].read_bytes()
    texts = ["Größe 5 µm — “quoted”", "line\u2028separator", 'tab\t"x"', "日本語"]
    records = tuple(
        Record(f"k{i}", image, text, f"p{i}", {"note": text}) for i, text in enumerate(texts)
    )
    monkeypatch.setitem(
        dataset_module.SOURCES, "phantom", lambda path, num_images=0: SourceRecords(records)
    )
    dataset = open_dataset("phantom", cache_dir=tmp_path, validation_fraction=0.0, progress=False)
    assert list(dataset.train.texts) == texts
    assert [labels["note"] for labels in dataset.train.labels] == texts
    assert dataset.train[1].text == texts[1]


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("imagenet", {}, "imagenet"),
        ("phantom", {"params": {"size": 3}}, "'size'"),
        ("phantom", {"path": "somewhere"}, "takes no path"),
        ("folder", {}, "give its path"),
        ("folder", {"path": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_mistakes(tmp_path, name, changes, named):
    arguments = {"cache_dir": tmp_path, "progress": False} | changes
    with pytest.raises(UserError, match=named) as error:
        open_dataset(name, **arguments)
    assert "\n" not in str(error.value)


def test_cache_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        _open(tmp_path, cache_dir=tmp_path / "file" / "cache")


def test_info_is_frozen(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        _open(tmp_path).info.source = "x"


def test_progress_bar_is_shown_once(tmp_path, capfd):
    _open(tmp_path, progress=True)
    assert "preparing" in capfd.readouterr().err
    _open(tmp_path, progress=True)
    streams = capfd.readouterr()
    assert "preparing" not in streams.err and not streams.out


def test_no_tensorflow_is_imported(tmp_path):
    code = f"""
import sys
import numpy as np
from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.loader import Source, make_loader
dataset = open_dataset("phantom", params={{"num_images": 20, "image_size": 16}},
                       cache_dir={str(tmp_path)!r}, progress=False)
loader = make_loader([Source(dataset.train, 4, {{}})], image_size=16)
assert next(loader)["images"].shape == (4, 16, 16, 3)
loader.close()
loaded = [n for n in sys.modules if n.split(".")[0] in ("tensorflow", "torch", "diffusers")]
print("loaded:", loaded)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "loaded: []"


def test_what_a_killed_preparation_left_is_removed(tmp_path):
    code = """
import os, sys
from medsd_jax.data import dataset

def killed(folder, *_, **__):
    (folder / "train.jsonl").write_text("half")
    os._exit(9)

dataset.write_records = killed
dataset.open_dataset("phantom", params={"num_images": 8, "image_size": 16}, cache_dir=sys.argv[1])
"""
    words = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 9
    assert len(list(tmp_path.glob(".*.unfinished"))) == 1
    result = open_dataset(
        "phantom", params={"num_images": 8, "image_size": 16}, cache_dir=tmp_path, progress=False
    )
    assert list(tmp_path.iterdir()) == [result.info.folder]

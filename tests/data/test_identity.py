"""What a resume asks of the data, and what the cache asks: the same records, untouched files."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data import dataset as dataset_module
from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.loader import Source, make_loader
from medsd_jax.errors import UserError


def write_image(path, value, shape=(8, 8)):
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["file_name,text"]
    for i in range(9):
        write_image(folder / f"{i}.png", 20 * i)
        rows.append(f"{i}.png,image {i}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def loader(tmp_path):
    made = []

    def make(folder):
        dataset = open_dataset(
            "folder", folder, cache_dir=tmp_path / "cache", validation_fraction=0, progress=False
        )
        made.append(make_loader([Source(dataset.train, 4, {})], image_size=8, num_threads=0))
        return made[-1]

    yield make
    for one in made:
        one.close()


def other_times(folder):
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))


def stray_files(folder):
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (folder / name).write_text("x")


def another_place(folder):
    folder.rename(folder.with_name("moved"))
    shutil.copytree(folder.with_name("moved"), folder, copy_function=shutil.copyfile)


@pytest.mark.parametrize("change", [other_times, stray_files, another_place])
def test_the_same_records_go_on_with_the_same_images(images, loader, change):
    first = loader(images)
    next(first)
    state, expected = first.get_state(), next(first)["images"]
    change(images)
    again = loader(images)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["images"], expected)


def test_another_version_of_the_package_goes_on(images, loader, monkeypatch):
    first = loader(images)
    state, before = first.get_state(), dataset_module._fingerprint
    monkeypatch.setattr(dataset_module, "_fingerprint", lambda *x: before(*x)[::-1])
    loader(images).set_state(state)


def another_name(folder):
    (folder / "0.png").rename(folder / "x.png")
    replace_text(folder, "0.png", "x.png")


def another_text(folder):
    replace_text(folder, "image 3", "another 3")


def another_size(folder):
    write_image(folder / "3.png", 60, (9, 8))


def one_more(folder):
    write_image(folder / "9.png", 7)
    (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text() + "9.png,p\n")


def replace_text(folder, old, new):
    path = folder / "metadata.csv"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("change", [another_name, another_text, another_size, one_more])
def test_other_records_are_refused_in_one_line(images, loader, change):
    state = loader(images).get_state()
    change(images)
    with pytest.raises(UserError, match=r"other records|num_images") as refused:
        loader(images).set_state(state)
    assert "\n" not in str(refused.value)


def test_other_content_of_the_same_name_and_size_is_prepared_anew(images, loader):
    first = np.unique(next(loader(images))["images"])
    size = (images / "3.png").stat().st_size
    for i in range(9):
        write_image(images / f"{i}.png", 20 * i + 1)
    assert (images / "3.png").stat().st_size == size
    second = np.unique(next(loader(images))["images"])
    assert not np.isin(second, first).any()

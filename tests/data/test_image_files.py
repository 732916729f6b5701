"""Image files of a folder, and the names of a table that lead to them or nowhere."""

import os

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.sources.image_files import FileFinder, list_images
from medsd_jax.errors import UserError


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path, format="PNG")


def test_a_folder(tmp_path, caplog):
    for name in (
        "b.PNG",
        "sub/a.tif",
        "c.jpe",
        ".hidden.png",
        ".git/x.png",
        "scan.dcm",
        "n.nii.gz",
    ):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    listed = list_images(tmp_path)
    assert list(listed.images) == ["b.PNG", "c.jpe", "sub/a.tif"]
    listed.warn_of_others(tmp_path)
    assert "link to nowhere or no plain file (3)" in caplog.text
    assert ".dcm (1)" in caplog.text and ".nii.gz (1)" in caplog.text
    assert "linked folder (1)" in caplog.text and "txt" not in caplog.text.partition(";")[0]


def test_a_name_that_is_not_utf_8(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    listed = list_images(tmp_path)
    assert list(listed.images) == ["a.png"] and listed.others == {r"\udcff.png": NOT_UTF_8}


NOT_UTF_8 = "name that is not UTF-8"


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", r"..\x.png", r"a\..\..\x.png"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    write(tmp_path / "x.png")
    (tmp_path / "f").mkdir()
    with pytest.raises(UserError, match="leaves the folder"):
        FileFinder(tmp_path / "f", inside=True).find(name, "here")


def test_windows_paths_are_read(tmp_path, caplog):
    write(tmp_path / "images/a.png")
    finder = FileFinder(tmp_path, inside=True)
    assert finder.find(r"images\a.png", "here") == ("images/a.png", tmp_path / "images/a.png")
    finder.warn(tmp_path / "t.csv")
    assert "1 names with backslashes are read as paths" in caplog.text


@pytest.mark.parametrize(
    "name", [r"D:\xrays\images\a.png", "a", "a.PNG", "a.jpg", "x/images/a.png"]
)
def test_a_name_that_leads_nowhere_has_a_hint(tmp_path, name):
    write(tmp_path / "images/a.png")
    write(tmp_path / "b.png")
    finder = FileFinder(tmp_path, inside=True)
    assert finder.find(name, "here")[1] is None
    assert f"for {name!r} there is 'images/a.png'" in finder.hint(list_images(tmp_path).images)


def test_no_hint_where_two_are_alike(tmp_path):
    for folder in ("p", "q"):
        write(tmp_path / folder / "a.png")
    finder = FileFinder(tmp_path, inside=True)
    finder.find("a.png", "here")
    finder.find("x" * 5000, "here")
    finder.find("\udcff.png", "here")
    assert finder.hint(list_images(tmp_path).images) == "" and len(finder.missing) == 3


def test_a_folder_with_a_link_to_itself_is_prepared(tmp_path):
    source = tmp_path / "source"
    for i in range(4):
        write(source / f"{i}.png")
    rows = "".join(f"{i}.png,Chest X-ray.\n" for i in range(4))
    (source / "metadata.csv").write_text("file_name,text\n" + rows)
    (source / "loop.png").symlink_to("loop.png")
    result = open_dataset("folder", source, cache_dir=tmp_path / "cache", progress=False)
    assert len(result.train) + len(result.validation) == 4

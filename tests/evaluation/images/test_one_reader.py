"""A set of images is the same in training, evaluation and export, of whatever kind."""

import csv
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli.main import main
from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.few_shot import few_shot
from medsd_jax.data.stored_image import read_pixels
from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.export import numbered_ids
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.images.units import seeds_of
from medsd_jax.workflows.classifier_recipe import targets_of

GREY = np.random.default_rng(0).integers(0, 256, (6, 8)).astype(np.uint8)
GREY[0, :2] = 0, 255


def turned():
    """Stored lying on its side, with the EXIF entry that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return np.rot90(GREY), {"exif": exif}


def over_black():
    alpha = np.where(GREY > 99, 255, 0).astype(np.uint8)
    white = np.where(alpha, GREY, 255).astype(np.uint8)
    return np.dstack([white, white, white, alpha]), {}


KINDS = {
    "turned.png": (turned, GREY),
    "over_black.png": (over_black, np.where(GREY > 99, GREY, 0)),
    "over_black.webp": (over_black, np.where(GREY > 99, GREY, 0)),
    "deep.png": (lambda: (GREY.astype(np.uint16) * 7 + 100, {}), GREY),
    "deep.tif": (lambda: (GREY.astype(np.uint16) * 257, {}), GREY),
    "plain.bmp": (lambda: (GREY, {}), GREY),
    "CAPITALS.PNG": (lambda: (GREY, {}), GREY),
}


@pytest.fixture
def folder(tmp_path):
    rows = ["file_name,text,patient_id,No Finding,Pleural Effusion,study,note"]
    for name, (make, _) in KINDS.items():
        pixels, options = make()
        if name.endswith(".webp"):
            options["lossless"] = True
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / name, **options)
        rows.append(f"{name},text of {name},{name},1.0,0.0,1,portable")
    (tmp_path / "set/metadata.csv").write_text("\n".join(rows))
    return tmp_path / "set"


def grey(pixels):
    if pixels.ndim == 2:
        return pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def test_a_set_and_its_prepared_copy_are_one(folder, tmp_path):
    prepared = open_dataset("folder", folder, cache_dir=tmp_path / "cache", progress=False)
    (where,) = (path.parent for path in (tmp_path / "cache").glob("*/info.json"))
    own = open_images(folder)
    assert len(own) == len(KINDS)
    at = {key.rpartition("/")[2]: i for i, key in enumerate(own.keys)}
    for split in (prepared.train, prepared.validation):
        if not len(split):
            continue
        copy = open_images(f"{where}:{split.name}")
        for i, key in enumerate(copy.keys):
            expected = KINDS[key][1]
            np.testing.assert_array_equal(grey(copy.read(i)), expected, err_msg=key)
            np.testing.assert_array_equal(grey(own.read(at[key])), expected, err_msg=key)
            stored = read_pixels(own.read_bytes(at[key]))[0]
            np.testing.assert_array_equal(grey(stored), expected, err_msg=key)
            assert own.labels[at[key]] == copy.labels[i] == {"no_finding": 1, "pleural_effusion": 0}


def test_what_was_converted_is_counted(folder, caplog):
    open_images(folder)
    assert "1 of 7 images converted: EXIF orientation applied" in caplog.text
    assert "2 of 7 images converted: alpha laid over black" in caplog.text


def test_exported_images_are_upright(folder, tmp_path):
    words = ["--real", str(folder), "--synthetic", str(folder), "--output", str(tmp_path / "out")]
    assert main(["export-images", *words]) == 0
    with (folder / "metadata.csv").open() as file:
        order = [row["file_name"] for row in csv.DictReader(file)]
    drawn = tmp_path / "out/clean-fid/synthetic"
    assert len(list(drawn.iterdir())) == len(KINDS)
    for number, name in enumerate(order):
        with Image.open(drawn / f"{number:06d}_0.png") as image:
            np.testing.assert_array_equal(grey(np.asarray(image)), KINDS[name][1], err_msg=name)


def bomb():
    """A PNG of 30,000 x 30,000 pixels in 100 kB."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(3751 * 30_000))
    end = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def test_images_that_cannot_be_read_are_reported_without_addresses(tmp_path, caplog):
    Image.fromarray(GREY).save(tmp_path / "fine.png")
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "fine.png").read_bytes()[:60])
    result = open_images(tmp_path)
    assert len(result) == 1 and len(result.unreadable) == 4
    assert "bomb.png: more pixels than Pillow's safety limit" in caplog.text
    assert "empty.png: empty file" in caplog.text
    assert "4 of 5 images left out" in caplog.text
    assert " at 0x" not in caplog.text and "BytesIO" not in caplog.text


def test_several_pages_are_reported(tmp_path, caplog):
    pages = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(open_images(tmp_path).read(0), GREY)
    assert "first of 2 pages" in caplog.text


def test_a_deep_negative_that_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    deep = Image.fromarray(65535 - GREY[::-1, ::-1].astype(np.uint16) * 257)
    deep.save(buffer, "TIFF", tiffinfo={262: 0, 0x0112: 3})
    np.testing.assert_array_equal(read_pixels(buffer.getvalue())[0], GREY)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"file": "a.png", "row": null}', "row is null, not an object"),
        (b'{"file": "a.png", "row": "x"}', "row is a text, not an object"),
        (b'{"file": "a.png", "row": 3}', "row is a number, not an object"),
        (b'{"file": ["a.png"]}', "file is a list"),
        (b'{"file": "../x.png"}', "leaves the folder"),
        (b'{"file": "/x.png"}', "leaves the folder"),
        (b'{"file": "a\\u0000.png"}', "NUL"),
        (b'{"file": "\\ud800.png"}', "surrogate"),
        (b'{"file": "\xff.png"}', "not UTF-8"),
        (b'{"file": ' + b"[" * 100_000, "nested too deep"),
        (b'{"file": "a.png", "row": {"chexpert_labels": "{1: 1}"}}', "are no object"),
        (b'{"file": "a.png", "row": {"labels": {"a": 7}}}', "are no object"),
    ],
)
def test_samples_of_others(tmp_path, line, message):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "samples.jsonl").write_bytes(b'{"file": "a.png"}\n' + line + b"\n")
    with pytest.raises(UserError, match=message) as caught:
        open_images(tmp_path)
    assert "line 2" in str(caught.value)


def test_samples_of_long_names_and_odd_ages(tmp_path, caplog):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    rows = [
        {"file": "a.png", "seed": 3, "row": {"age": "\u00b2", "labels": {"Edema": 1}}},
        {"file": "x" * 5000 + ".png"},
        {"file": "a.png", "seed": 4},
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = open_images(tmp_path)
    assert len(result) == 2 and result.labels[0] == {"edema": 1}
    assert "1 rows name an image that another row names" in caplog.text
    assert len(seeds_of(result)) == 2


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_tables_by_their_suffix(tmp_path, name):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    text = {"t.csv": "path\na.png", "t.tsv": "id\tpath\n1\ta.png", "t.jsonl": '{"path": "a.png"}'}
    (tmp_path / name).write_text(text[name])
    assert len(open_images(tmp_path / name)) == 1


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match="is no folder and no table"):
        open_images(tmp_path / "t.xlsx")


def test_chexperts_patients_are_in_the_path(tmp_path, caplog):
    paths = [f"valid/patient{64541 + i // 2}/study{1 + i % 2}/view1_frontal.jpg" for i in range(6)]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True)
        Image.fromarray(GREY).save(tmp_path / path)
    (tmp_path / "valid.csv").write_text("Path,Sex\n" + "".join(f"{p},Male\n" for p in paths))
    for where in ("valid.csv", "valid"):
        assert len(set(open_images(tmp_path / where).patient_ids)) == 3
    assert "no patient is known" not in caplog.text
    (tmp_path / "valid/plain.png").write_bytes((tmp_path / paths[0]).read_bytes())
    assert len(set(open_images(tmp_path / "valid").patient_ids)) == 4
    assert "of 1 of 7 images no patient is known" in caplog.text


def test_chexperts_columns_train_a_classifier_and_choose_few_shots(tmp_path):
    folder, cells = tmp_path / "set", ("1.0,0.0,0.0", ",1.0,", ",-1.0,0.0", ",1.0,1.0")
    folder.mkdir()
    rows = ["file_name,text,patient_id,study,No Finding,Pleural Effusion,Cardiomegaly"]
    for i in range(24):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,Chest X-ray.,p{i},1,{cells[i % 4]}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    split = open_dataset("folder", folder, cache_dir=tmp_path / "cache", progress=False).train
    kinds = [int(key.partition(".")[0]) % 4 for key in split.keys]
    for label in ("Pleural Effusion", "pleural_effusion"):
        expected = [(0, 1, np.nan, 1)[kind] for kind in kinds]
        np.testing.assert_array_equal(targets_of(split, [label])[:, 0], expected)
        chosen = few_shot(
            split, label=label, prompt_with="a", prompt_without="b", images_per_prompt=3
        )
        of = [int(key.partition(".")[0]) % 4 for key in chosen.keys]
        assert of == [1, 1, 1, 0, 0, 0]  # never 3, which has cardiomegaly as well


def test_a_long_id_is_reported_before_anything_is_drawn():
    with pytest.raises(UserError, match="300 characters, too many for the name of a file"):
        numbered_ids("the prompts", ["x" * 300], ["a"], ["0"])
    with pytest.raises(UserError, match="too many"):
        numbered_ids("the prompts", ["\u00e4" * 150], ["a"], ["0"])

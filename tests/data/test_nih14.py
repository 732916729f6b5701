"""NIH ChestX-ray14: the layout in small, and the real files where they are present."""

import csv
import gzip
import shutil

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.sources import nih14
from medsd_jax.data.transforms import decode
from medsd_jax.errors import UserError

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def _layout(folder, rows, table="labels.csv", images="images"):
    (folder / images).mkdir()
    lines = [HEADER]
    for name, labels, patient in rows:
        Image.fromarray(np.full((8, 8), 90, np.uint8)).save(folder / images / name)
        lines.append(f"{name},{labels},0,{patient},057Y,M,PA,2682,2749,0.143,0.143")
    text = "\n".join(lines) + "\n"
    write = gzip.open if table.endswith(".gz") else open
    with write(folder / table, "wt", encoding="utf-8") as file:
        file.write(text)


ROWS = [("1_0.png", "Cardiomegaly|Effusion", 1), ("2_0.png", "No Finding", 2)]


@pytest.mark.parametrize(
    ("table", "images"),
    [
        ("labels.csv", "images"),
        ("Data_Entry_2017.csv", "images_001"),
        ("Data_Entry_2017_v2020.csv.gz", "images"),
    ],
)
def test_layouts(tmp_path, table, images):
    _layout(tmp_path, ROWS, table, images)
    sick, well = nih14.load(tmp_path).records
    assert sick.patient_id == "1" and well.patient_id == "2"
    assert sick.labels["pleural_effusion"] == 1 and sick.labels["cardiomegaly"] == 1
    assert sick.labels["no_finding"] == 0 and sick.labels["nodule"] == 0
    assert well.labels["no_finding"] == 1 and not well.labels["pleural_effusion"]
    assert sick.labels["view"] == "PA" and sick.labels["sex"] == "M" and sick.labels["age"] == 57
    assert sum(v == 1 for k, v in sick.labels.items() if k != "age") == 2
    assert sick.text == nih14.caption(["pleural effusion", "cardiomegaly"], "PA", "1_0.png")
    assert well.text == nih14.caption([], "PA", "2_0.png")


def test_ages_of_the_first_table(tmp_path):
    _layout(tmp_path, ROWS, "Data_Entry_2017.csv", "images")
    table = tmp_path / "Data_Entry_2017.csv"
    for written, age in (("011M", 0), ("003D", 0), ("057Y", 57), ("411Y", None), ("\u00b2", None)):
        text = table.read_text()
        changed = tmp_path / "changed"
        changed.mkdir()
        _layout(changed, ROWS, "Data_Entry_2017.csv", "images")
        (changed / "Data_Entry_2017.csv").write_text(text.replace("057Y", written))
        assert nih14.load(changed).records[0].labels.get("age") == age
        shutil.rmtree(changed)


@pytest.mark.parametrize(
    ("phrases", "in_the_papers_words", "plain"),
    [
        (
            ["pleural effusion", "cardiomegaly"],
            " with a visible pleural effusion and visible cardiomegaly",
            "Pleural effusion and cardiomegaly.",
        ),
        ([], "", "No finding."),
    ],
)
def test_captions_have_three_forms(phrases, in_the_papers_words, plain):
    assert {nih14.caption(phrases, "PA", f"{i}.png") for i in range(100)} == {
        f"A photo of a lung xray{in_the_papers_words}",
        f"Chest X-ray. {plain}",
        f"Chest X-ray, PA view. {plain}",
    }


def test_all_caption_forms_occur_and_are_stable():
    texts = [nih14.caption(["nodule"], "AP", f"{i}.png") for i in range(300)]
    assert texts == [nih14.caption(["nodule"], "AP", f"{i}.png") for i in range(300)]
    counts = {text: texts.count(text) / 300 for text in set(texts)}
    assert counts["A photo of a lung xray with a visible nodule"] == pytest.approx(0.3, abs=0.08)
    assert counts["Chest X-ray, AP view. Nodule."] == pytest.approx(0.35, abs=0.09)
    assert counts["Chest X-ray. Nodule."] == pytest.approx(0.35, abs=0.09)


def test_mismatched_files_are_named(tmp_path):
    _layout(tmp_path, ROWS)
    (tmp_path / "images" / "1_0.png").unlink()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / "9_9.png")
    result = nih14.load(tmp_path)
    assert [record.key for record in result.records] == ["2_0.png"]
    assert {names for names in result.problems.values()} == {("1_0.png",), ("9_9.png",)}


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="no label table"):
        nih14.load(tmp_path)
    (tmp_path / "labels.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="Image Index"):
        nih14.load(tmp_path)
    (tmp_path / "labels.csv").write_text(HEADER + "\n")
    with pytest.raises(UserError, match="no folder 'images'"):
        nih14.load(tmp_path)
    (tmp_path / "labels.csv").unlink()
    _layout(tmp_path, [("1.png", "Gout", 1)])
    with pytest.raises(UserError, match=r"'Gout' of 1\.png"):
        nih14.load(tmp_path)


def test_truncated_table(tmp_path):
    _layout(tmp_path, ROWS, "Data_Entry_2017.csv.gz")
    file = tmp_path / "Data_Entry_2017.csv.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="gzip"):
        nih14.load(tmp_path)


@pytest.fixture(scope="module")
def real(shared_assets):
    folder = shared_assets / "nih_cxr14_64px"
    if not folder.is_dir():
        pytest.skip(f"no NIH images at {folder}")
    return folder


def test_real_records(real):
    result = nih14.load(real)
    assert len(result.records) == 772 and not result.problems
    with open(real / "labels.csv", newline="") as file:
        rows = {row["Image Index"]: row for row in csv.DictReader(file)}
    for record in result.records:
        row = rows[record.key]
        truth = set(row["Finding Labels"].split("|"))
        assert record.patient_id == row["Patient ID"]
        assert record.labels["pleural_effusion"] == ("Effusion" in truth)
        assert record.labels["no_finding"] == ("No Finding" in truth)
        # An independent reading of the caption: it names what is labelled and nothing else.
        text = record.text.lower()
        for label in nih14.WORDS:
            word = {"Effusion": "pleural effusion"}.get(label, label.lower().replace("_", " "))
            assert (word in text) == (label in truth), (text, truth)
    assert sum(record.labels["pleural_effusion"] for record in result.records) > 80


def test_real_data_prepares_without_a_leak(real, tmp_path):
    dataset = open_dataset("nih14", real, cache_dir=tmp_path, progress=False)
    train, validation = dataset.train, dataset.validation
    assert len(train) + len(validation) == 772 and not dataset.info.skipped
    assert set(train.patient_ids).isdisjoint(validation.patient_ids)
    assert 0.03 < len(validation) / 772 < 0.25
    assert {decode(train[i].read_bytes()).shape for i in range(len(train))} == {(64, 64, 3)}
    # Stored byte for byte, but for the ones with an alpha channel.
    changed = 0
    for split in (train, validation):
        for index in range(len(split)):
            record = split[index]
            changed += record.read_bytes() != (real / "images" / record.key).read_bytes()
    assert changed == sum(dataset.info.conversions.values()) == 15

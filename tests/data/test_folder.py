"""The image-folder source: metadata forms, everything that can be wrong with them."""

import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.sources import folder
from medsd_jax.errors import UserError


def _image(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def _csv(path, text):
    (path / "metadata.csv").write_text(text, encoding="utf-8")


def test_csv_with_everything(tmp_path):
    _image(tmp_path / "p1" / "a.png")
    _image(tmp_path / "b.png")
    _csv(
        tmp_path,
        "file_name,text,patient_id,split,effusion,ratio,note\n"
        'p1/a.png,"Chest X-ray, PA view.\nLarge effusion.",p1,val,1,0.5,portable\n'
        "b.png,Normal.,p2,train,0,,\n",
    )
    a, b = folder.load(tmp_path).records
    assert a.key == "p1/a.png" and a.text == "Chest X-ray, PA view. Large effusion."
    assert a.patient_id == "p1" and a.split == "validation"
    assert a.labels == {"effusion": 1, "ratio": 0.5, "note": "portable"}
    assert a.read_bytes() == (tmp_path / "p1" / "a.png").read_bytes()
    assert b.split == "train" and b.labels == {"effusion": 0, "ratio": "", "note": ""}


def test_jsonl_equals_csv(tmp_path):
    for name in ("x", "y"):
        _image(tmp_path / f"{name}.png")
    _csv(tmp_path, "file_name,text,patient_id,age\nx.png,Größe,p,3\ny.png,b,,4\n")
    from_csv = folder.load(tmp_path).records
    (tmp_path / "metadata.csv").unlink()
    rows = [
        {"file_name": "x.png", "text": "Größe", "patient_id": "p", "age": 3},
        {"file_name": "y.png", "text": "b", "patient_id": None, "age": 4},
    ]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    assert folder.load(tmp_path).records == from_csv
    assert from_csv[1].patient_id == "y.png"


def test_byte_order_mark_and_spaces(tmp_path):
    _image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name, text\r\na.png, hello \r\n")
    assert folder.load(tmp_path).records[0].text == "hello"


def test_left_out_entries_are_named(tmp_path):
    for name in ("a", "untold", "empty", "held"):
        _image(tmp_path / f"{name}.png")
    _csv(
        tmp_path,
        "file_name,text,split\na.png,fine,\ngone.png,x,\nempty.png,,\nheld.png,x,test\n",
    )
    result = folder.load(tmp_path)
    assert [record.key for record in result.records] == ["a.png"]
    by_name = {names: reason for reason, names in result.problems.items()}
    assert "no such file" in by_name[("gone.png",)]
    assert "without a row" in by_name[("untold.png",)]
    assert "no text" in by_name[("empty.png",)]
    assert "test" in by_name[("held.png",)]


def test_texts_that_say_there_is_none_are_no_captions(tmp_path):
    texts = ["nan", "None", "N/A", "Normal.", None, float("nan")]
    for i in range(len(texts)):
        _image(tmp_path / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    result = folder.load(tmp_path)
    assert [record.text for record in result.records] == ["Normal."]
    named = {reason: names for reason, names in result.problems.items()}
    assert ("0.png", "1.png", "2.png", "5.png") in named.values()


def test_a_file_of_another_name_is_hinted_at(tmp_path):
    _image(tmp_path / "images" / "a.png")
    _csv(tmp_path, "file_name,text\nD:\\x\\a.png,x\n")
    (message,) = (reason for reason in folder.load(tmp_path).problems if "no such file" in reason)
    assert "there is 'images/a.png': write that" in message


def test_no_metadata_shows_the_format(tmp_path):
    _image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"file_name,text") as error:
        folder.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "image,caption\na.png,x\n", "no file_name and no text"),
        ("metadata.csv", "file_name,caption\na.png,x\n", "no text"),
        ("metadata.csv", "", "it has nothing"),
        ("metadata.csv", "file_name,text\na.png,x\na.png,y\n", "line 3.*line 2"),
        ("metadata.csv", "file_name,text\n../a.png,x\n", "leaves the folder"),
        ("metadata.csv", "file_name,text,split\na.png,x,maybe\n", "line 2.*'maybe'"),
        ("metadata.csv", 'file_name,text\na.png,"x', "CSV"),
        ("metadata.csv", "file_name,text\na.png,Effusion, large\n", "line 2 has more cells"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{oops\n', "line 2 is not JSON"),
        ("metadata.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n', "line 1 has no text"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ["x", "y"]}\n', "text is a list"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "\\ud800"}\n', "surrogate"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ' + "[" * 99999, "nested too deep"),
        ("metadata.csv", "file_name,text,text\na.png,x,y\n", "two columns 'text'"),
        ("train/metadata.csv", "file_name,text\na.png,x\n", "but there is 'train/metadata.csv'"),
    ],
)
def test_bad_metadata(tmp_path, name, text, message):
    _image(tmp_path / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        folder.load(tmp_path)
    assert "\n" not in str(error.value)


def test_empty_cells_beyond_the_header_are_nothing(tmp_path):
    """NIH's own table ends every line with a comma."""
    _image(tmp_path / "a.png")
    _csv(tmp_path, "file_name,text\na.png,x,,\n")
    assert [record.text for record in folder.load(tmp_path).records] == ["x"]


def test_both_metadata_files(tmp_path):
    _csv(tmp_path, "file_name,text\n")
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(UserError, match="keep one"):
        folder.load(tmp_path)


def test_latin_1_metadata(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.png,Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        folder.load(tmp_path)


@pytest.mark.parametrize("path", [None, "gone", "file"])
def test_bad_folder(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="folder"):
        folder.load(None if path is None else tmp_path / path)


def test_written_folder_reads_back(tmp_path):
    records = phantom_records(6)
    folder.write_image_folder(records, tmp_path / "out", progress=False)
    back = folder.load(tmp_path / "out")
    assert not back.problems
    for old, new in zip(records, back.records, strict=True):
        assert new.key == f"{old.key}.png" and new.patient_id == old.patient_id
        assert new.text == old.text and new.labels == old.labels
        assert new.read_bytes() == old.read_bytes()
    with pytest.raises(UserError, match="not an empty folder"):
        folder.write_image_folder(records, tmp_path / "out", progress=False)

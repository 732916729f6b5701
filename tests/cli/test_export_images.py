"""export-images: names and tables as the other groups' scripts look for them."""

import ast
import csv
import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli.main import main


@pytest.fixture
def sets(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("real", 3), ("synthetic", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 9), np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    (tmp_path / "real" / "metadata.csv").write_text(
        "file_name,text,id,Pleural Effusion,Edema\n0.png,one,a,1,\n1.png,two,b,0,1\n2.png,x,c,0,0\n"
    )
    rows = [("one", "a", "1"), ("one", "a", "1"), ("two, too", "b/2", "0"), ("one", "a", "1")]
    (tmp_path / "synthetic" / "samples.jsonl").write_text(
        "\n".join(
            json.dumps(
                {
                    "file": f"{i}.png",
                    "prompt": prompt,
                    "row": {"id": own, "path": "p10/x.jpg", "Pleural Effusion": label},
                }
            )
            for i, (prompt, own, label) in enumerate(rows)
        )
    )
    return tmp_path


def export_images(sets, *more):
    words = ["--real", str(sets / "real"), "--synthetic", str(sets / "synthetic")]
    return main(["export-images", *words, "--output", str(sets / "out"), *more])


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_all_three_layouts(sets):
    assert export_images(sets) == 0
    out = sets / "out"
    drawn = ["a_0", "a_1", "a_2", "b-2_0"]
    assert names(out / "clean-fid" / "synthetic") == [f"{n}.png" for n in drawn]
    assert names(out / "roentgen" / "synthetic") == [f"{n}.jpg" for n in drawn]
    assert len(list((out / "roentgen" / "synthetic").glob("*_0.jpg"))) == 2  # one per prompt
    assert names(out / "roentgen" / "real") == ["a.jpg", "b.jpg", "c.jpg"]
    for parent in ("clean-fid", "chexgenbench"):
        assert names(out / parent / "real") == ["a.png", "b.png", "c.png"]
    with Image.open(out / "clean-fid" / "synthetic" / "a_2.png") as copy:
        with Image.open(sets / "synthetic" / "3.png") as image:
            np.testing.assert_array_equal(np.asarray(copy), np.asarray(image))
    with (out / "roentgen" / "real.csv").open() as file:
        paths = [row["Path"] for row in csv.DictReader(file)]
    assert all((out / "roentgen" / path).is_file() for path in paths) and len(paths) == 3


def test_chexgenbenchs_table_has_every_name_its_scripts_use(sets):
    assert export_images(sets) == 0
    with (sets / "out" / "chexgenbench" / "generations_with_metadata.csv").open() as file:
        first, second = csv.DictReader(file)
    assert set(first) == {"id", "path", "prompt", "annotated_prompt", "img_savename",
                          "synthetic_filename", "chexpert_labels"}  # fmt: skip
    assert second["prompt"] == second["annotated_prompt"] == "two, too"
    assert first["img_savename"] == first["synthetic_filename"] == "SyntheticImg_a.png"
    assert (sets / "out" / "chexgenbench" / "synthetic" / "SyntheticImg_a.png").is_file()
    assert (first["path"], second["path"]) == ("a.png", "")
    labels = ast.literal_eval(first["chexpert_labels"])
    assert len(labels) == 14
    assert labels["Pleural Effusion"] == 1.0 and labels["Edema"] is None
    with (sets / "out" / "chexgenbench" / "real.csv").open() as file:
        real = list(csv.DictReader(file))
    assert [ast.literal_eval(r["chexpert_labels"])["Edema"] for r in real] == [None, 1.0, 0.0]


def test_mistakes_are_one_line(sets, capsys):
    assert export_images(sets) == 0
    assert export_images(sets) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    table = sets / "synthetic" / "samples.jsonl"
    table.write_text(table.read_text().replace("two, too", "one").replace('"one"', '"1"', 1))
    assert export_images(sets, "--output", str(sets / "other")) == 2
    assert "has the prompts" in capsys.readouterr().err.splitlines()[-1]

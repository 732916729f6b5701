"""The command `data`: its examples work, its mistakes are one line."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli import data
from medsd_jax.cli.main import main


def test_the_examples_of_the_help_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = data._EXAMPLES.replace("\\\n", " ")
    examples = [shlex.split(line) for line in text.splitlines() if "medsd-jax data" in line]
    assert len(examples) == 3
    for words in examples:
        assert words[0] == "medsd-jax"
        words = ["24" if word == "300" else word for word in words[1:]]
        assert main(words) == 0
        message = capsys.readouterr().out
        counts = [int(n) for n in re.findall(r"^(?:train|validation): (\d+) images", message, re.M)]
        assert len(counts) == 2 and sum(counts) == 24
        with Image.open(
            tmp_path / words[words.index("--output") + 1] / "contact_sheet.png"
        ) as sheet:
            pixels = np.asarray(sheet)
        assert pixels.shape[1] > 900 and 40 < pixels.mean() < 220


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", "--help"])
    assert end.value.code == 0
    assert "medsd-jax data --source phantom" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--source", "folder", "--output", "out"],
        ["--source", "folder", "--path", "gone", "--output", "out"],
        ["--source", "folder", "--path", ".", "--output", "out", "--num_images", "5"],
        ["--source", "phantom", "--output", "file", "--num_images", "5"],
        ["--source", "phantom", "--output", "out", "--num_images", "0"],
        ["--source", "phantom", "--output", "out", "--image_size", "9999"],
        ["--source", "phantom", "--output", "out", "--num_images", "3", "--seed", "-1"],
        ["--source", "phantom", "--output", "out", "--export_folder", "full"],
        ["--source", "atlas", "--output", "out"],
        ["--source", "phantom"],
    ],
)
def test_mistakes_are_one_line_and_code_2(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("medsd_jax: error:") and "Traceback" not in "".join(error)

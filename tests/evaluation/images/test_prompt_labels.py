"""Labels of images by a table of their prompts."""

import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.images.prompt_labels import known_labels, labels_by_prompt

PROMPTS = ("Chest X-ray.  Small\neffusion.", "No finding.")


@pytest.fixture
def images(tmp_path):
    """Four images as sample.py writes them."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    lines = []
    for i in range(4):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "prompt": PROMPTS[i % 2], "seed": i}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return open_images(folder)


def write(tmp_path, text):
    path = tmp_path / "prompts.csv"
    path.write_text(text)
    return path


def test_the_table_decides(tmp_path, images):
    """Its columns under the one spelling of labels; what it leaves open is not known."""
    table = write(
        tmp_path,
        "prompt,seed,Pleural Effusion,nodule\n"
        "Chest X-ray. Small effusion.,0,0,\n"
        "Chest X-ray. Small effusion.,9,0,\n"
        "No finding.,5,1,0\n"
        "Never drawn.,5,1,1\n",
    )
    expected = [{"pleural_effusion": 0}, {"pleural_effusion": 1, "nodule": 0}] * 2
    assert labels_by_prompt(images, table) == expected
    words = [row["pleural_effusion"] for row in known_labels(images)]
    assert words == [1, 0, 1, 0]  # what the prompts say, which this table turns round


def test_prompts_without_labels_are_listed(tmp_path, images):
    table = write(tmp_path, "prompt,effusion\nNo finding.,0\n")
    with pytest.raises(UserError, match=r"1 prompt\(s\) .*: 'Chest X-ray\. Small effusion\.'$"):
        labels_by_prompt(images, table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,effusion\na,1\n", "needs a column prompt .*has: text, effusion"),
        ("prompt,seed\na,1\n", "one for each label"),
        ("prompt,effusion\na,1\na,0\n", "line 3: 'a' has other labels further up"),
        ("prompt,effusion\na,yes\n", "line 2: effusion is 'yes'"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, images, text, message):
    with pytest.raises(UserError, match=message):
        labels_by_prompt(images, write(tmp_path, text))
    with pytest.raises(UserError, match="no such table"):
        labels_by_prompt(images, tmp_path / "absent.csv")

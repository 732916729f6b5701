"""Images of one start noise are one draw, where there are enough start noises."""

import json
import logging

import numpy as np
from PIL import Image

from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.images.units import seeds_of, units_of_seeds


def test_seeds_are_those_of_the_samples(tmp_path):
    lines = []
    for i in (2, 0, 1):
        Image.fromarray(np.full((16, 16), i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "prompt": "p", "seed": 10 + i, "row": {}}))
    assert seeds_of(open_images(tmp_path)) is None
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    assert seeds_of(open_images(tmp_path)) == [12, 10, 11]


def test_units(caplog):
    assert units_of_seeds(None, ["a"] * 3) is None
    assert units_of_seeds([1, 2, 3], ["a"] * 3) is None
    pairs = units_of_seeds([*range(10)] * 2, ["a"] * 10 + ["b"] * 10)
    assert pairs == [str(i) for i in range(10)] * 2 and not caplog.records
    with caplog.at_level(logging.WARNING):
        few = units_of_seeds([0, 1, 0, 1, 0], ["a", "a", "b", "b", "a"], "S")
    assert len(set(few)) == 4 and few[0] == few[4]
    assert "S: 5 images share 2 start noises" in caplog.text

"""Diversity of a folder that sample.py wrote: prompts apart, collapse seen."""

import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.metrics.diversity import diversity
from medsd_jax.evaluation.metrics.similarity import ms_ssim


def write(folder, prompts, images):
    """A folder as sample.py leaves it."""
    folder.mkdir()
    rows = []
    for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        Image.fromarray(image).save(folder / f"{number}.png")
        rows.append(json.dumps({"file": f"{number}.png", "prompt": prompt}))
    (folder / "samples.jsonl").write_text("\n".join(rows) + "\n")
    return open_images(folder)


def noise(count, seed=0, size=64):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (size // 8, size // 8))
    smooth = np.kron(base, np.ones((8, 8)))
    return [np.clip(smooth + rng.normal(0, 30, (size, size)), 0, 255).astype(np.uint8)
            for _ in range(count)]  # fmt: skip


def test_only_pairs_of_one_prompt_count(tmp_path):
    first, second = noise(4, 0), noise(4, 1)
    prompts = ["a", "b"] * 4
    mixed = [image for pair in zip(first, second, strict=True) for image in pair]
    result = diversity(write(tmp_path / "x", prompts, mixed))
    assert (result.num_prompts, result.images_per_prompt, result.num_scales) == (2, 4, 3)
    by_hand = []
    for images in (first, second):
        x = np.stack(images)[..., None].astype(np.float32) / 255
        for i in range(4):
            for j in range(i + 1, 4):
                by_hand.append(float(ms_ssim(x[i : i + 1], x[j : j + 1], num_scales=3)[0]))
    assert len(by_hand) == 12
    assert result.ms_ssim.value == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert result.std == pytest.approx(np.std(by_hand), abs=1e-5)


def test_mode_collapse_raises_it(tmp_path):
    prompts = ["a"] * 4 + ["b"] * 4
    # Eight structures; one structure a prompt, grain apart; one image.
    diverse = [image for seed in range(8) for image in noise(1, seed)]
    sets = {"diverse": diverse, "near": noise(4, 0) + noise(4, 1), "one": noise(1, 0) * 8}
    result = {
        name: diversity(write(tmp_path / name, prompts, images)).ms_ssim.value
        for name, images in sets.items()
    }
    assert result["diverse"] < 0.3 < 0.8 < result["near"] < result["one"]
    assert result["one"] == pytest.approx(1.0, abs=1e-6)


def test_prompts_with_fewer_images_are_counted(tmp_path):
    result = diversity(write(tmp_path / "x", ["a"] * 5 + ["b"] * 3, noise(8)))
    assert (result.num_prompts, result.prompts_left_out) == (1, 1)
    assert result.ms_ssim.ci95 is None


def test_without_two_images_of_a_prompt_there_is_none(tmp_path):
    assert diversity(write(tmp_path / "x", ["a", "b"], noise(2))) is None
    Image.fromarray(noise(1)[0]).save(tmp_path / "plain.png")
    (tmp_path / "x" / "samples.jsonl").unlink()
    assert diversity(open_images(tmp_path / "x")) is None


def test_several_sizes_are_reported(tmp_path):
    images = noise(1) + noise(1, size=80)
    with pytest.raises(UserError, match="64x64, 80x80"):
        diversity(write(tmp_path / "x", ["a", "a"], images))

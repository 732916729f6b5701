"""Copies of training images are found, whatever was done to them; nobody else is accused."""

import io

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.phantoms import phantom
from medsd_jax.errors import UserError
from medsd_jax.evaluation.memorization.nearest_images import (
    measure_memorization,
    measure_memorization_in_pixels,
    most_suspicious,
)

COPIES = 10


def draw(seed, count):
    records = phantom.load(None, num_images=count, seed=seed, image_size=64).records
    return [np.asarray(Image.open(io.BytesIO(r.read_bytes())).convert("L")) for r in records]


@pytest.fixture(scope="module")
def sets():
    """Training, held-out and synthetic phantoms of three seeds: no patient is in two of them."""
    return draw(1, 150), draw(2, 120), draw(3, 60)


def shifted(image):
    return np.roll(image, (2, -3), axis=(0, 1))


def re_encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def brighter(image):
    return np.clip(image.astype(float) * 0.8 + 40, 0, 255).astype(np.uint8)


def half_as_large(image):
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("change", [lambda p: p, shifted, re_encoded, brighter, half_as_large])
def test_planted_copies_top_the_list(sets, change):
    train, held_out, synthetic = sets
    planted = [change(train[7 * i]) for i in range(COPIES)]
    memorization = measure_memorization_in_pixels(train, held_out, [*synthetic, *planted])
    names = [f"s{i}" for i in range(len(synthetic))] + [f"copy{7 * i}" for i in range(COPIES)]
    listed = most_suspicious({"pixels": memorization}, names, [f"t{i}" for i in range(len(train))])
    for row in listed[:COPIES]:
        assert row.image.startswith("copy") and row.ratio < 1
        assert row.nearest == row.image.replace("copy", "t")


def test_other_patients_are_not_accused(sets):
    memorization = measure_memorization_in_pixels(*sets)
    entry = memorization.report()
    # 120 held-out images: the lowest distance is the threshold, and passed by one in 121.
    assert entry.expected_by_chance == pytest.approx(60 / 121)
    assert entry.by_chance_ci95 == (0, 3)
    assert (memorization.ratio < 1).sum() == entry.num_suspicious <= 3
    assert entry.doubt is None and entry.num_held_out_patients == 120
    within = entry.median_distance_within_training
    assert within == pytest.approx(entry.median_distance_of_held_out, rel=0.1)
    close = entry.median_distance / entry.median_distance_of_held_out
    assert close == pytest.approx(1.0, abs=0.15)


def test_copies_in_a_feature_space():
    rng = np.random.default_rng(0)
    train, held_out, synthetic = (
        rng.normal(size=(n, 8)).astype(np.float32) for n in (200, 100, 50)
    )
    synthetic[:3] = train[[5, 6, 7]] + 0.01 * rng.normal(size=(3, 8))
    memorization = measure_memorization(train, held_out, synthetic)
    assert (memorization.ratio[:3] < 0.1).all() and memorization.neighbours[:3].tolist() == [
        5,
        6,
        7,
    ]
    # The threshold is the lowest of 100 held-out distances, counted by hand.
    gaps = np.linalg.norm(held_out[:, None] - train[None], axis=2).min(axis=1)
    assert memorization.threshold == pytest.approx(gaps.min(), rel=1e-5)


def test_training_images_are_seen_from_those_of_other_patients():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(90, 5)).astype(np.float32)
    patients = np.repeat(np.arange(30), 3)
    train[1::3] = train[::3] + 0.001  # a patient's second image is nearly the first
    memorization = measure_memorization(
        train, rng.normal(size=(40, 5)), train[:4], train_patients=patients.astype(str).tolist()
    )
    gaps = np.linalg.norm(train[:, None] - train[None], axis=2)
    gaps[patients[:, None] == patients[None]] = np.inf
    expected = np.sort(gaps.min(axis=1).reshape(30, 3)[:, 0])
    np.testing.assert_allclose(np.sort(memorization.training), expected, rtol=1e-5)
    images = draw(5, 25) * 2
    memorization = measure_memorization_in_pixels(
        images, draw(6, 30), images[:2], train_patients=[*map(str, range(25))] * 2
    )
    alone = measure_memorization_in_pixels(images, draw(6, 30), images[:2])
    assert len(memorization.training) == 25 and memorization.training.min() > 0
    assert (alone.training == 0).all()  # each is then another patient's copy


def test_held_out_images_of_another_origin_accuse_nobody(sets):
    """Bright noise is far from every phantom: all phantoms are nearer than that."""
    train, _, synthetic = sets
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64)).astype(np.uint8) for _ in range(40)]
    entry = measure_memorization_in_pixels(train, noise, synthetic).report()
    assert entry.num_suspicious == 60 and "another origin" in entry.doubt
    features = rng.normal(size=(150, 8)).astype(np.float32)
    entry = measure_memorization(features, features[:40] + 5.0, features[:50] + 0.3).report()
    assert "another origin" in entry.doubt
    entry = measure_memorization(features, features[:40], features[:50]).report()
    assert "themselves among the training images" in entry.doubt


def test_the_nearest_of_several_spaces_counts():
    rng = np.random.default_rng(0)
    spaces = {}
    for number, name in enumerate(("a", "b")):
        train, held_out, synthetic = (
            rng.normal(size=(n, 4)).astype(np.float32) for n in (50, 50, 6)
        )
        synthetic[number] = train[number]
        spaces[name] = measure_memorization(train, held_out, synthetic)
    listed = most_suspicious(spaces, list("uvwxyz"), [str(i) for i in range(50)])
    assert {(row.image, row.nearest, row.space) for row in listed[:2]} == {
        ("u", "0", "a"),
        ("v", "1", "b"),
    }


def test_too_few_other_patients_are_reported():
    x = np.zeros((30, 2), np.float32)
    with pytest.raises(UserError, match="5 held-out images of 5 patients"):
        measure_memorization(x, x[:5], x)

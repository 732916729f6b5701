"""PNG metadata round trips, grid geometry."""

import numpy as np
import pytest
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.sampling.images import make_grid, read_metadata, save_png

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


METADATA = {
    "prompt": "Pleuraerguss links, Größe 3 cm; 胸水 🫁\nsecond line",
    "negative_prompt": "",
    "seed": 2**63 - 1,
    "guidance_scale": 7.5,
    "settings": {"sampler": "ddim", "num_steps": 50, "size": [64, 64], "clip": None},
}


def test_metadata_round_trip(tmp_path):
    path = tmp_path / "a.png"
    save_png(IMAGE, path, METADATA)
    assert read_metadata(path) == METADATA
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), IMAGE)
        # Other programs find the plain words without knowing us.
        assert image.info["prompt"] == METADATA["prompt"]
        assert image.info["seed"] == str(2**63 - 1)


def test_metadata_takes_numpy_scalars_and_undecodable_words(tmp_path):
    path = tmp_path / "a.png"
    save_png(IMAGE, path, {"seed": np.int64(3), "eta": np.float32(0.5), "prompt": "a\udcffb"})
    assert read_metadata(path) == {"seed": 3, "eta": 0.5, "prompt": "a\udcffb"}


def test_metadata_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_png(IMAGE, tmp_path / "a.png", {"eta": float("nan")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"no image", "not a readable PNG"),
        ("foreign", "not written by"),
    ],
)
def test_metadata_of_a_wrong_file(tmp_path, content, message):
    path = tmp_path / "a.png"
    if content == "foreign":
        Image.fromarray(IMAGE).save(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_metadata(path)


def test_metadata_of_a_truncated_file(tmp_path):
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save_png(noise, path, METADATA)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="not a readable PNG"):
        read_metadata(path)


def test_grid_places_images_row_by_row():
    images_u8 = np.stack([np.full((5, 7, 3), value, np.uint8) for value in (10, 20, 30)])
    grid = make_grid(images_u8, columns=2, padding=3)
    assert grid.shape == (2 * 5 + 3 * 3, 2 * 7 + 3 * 3, 3) and grid.dtype == np.uint8
    expected = np.full_like(grid, 255)
    for value, (y, x) in zip((10, 20, 30), [(3, 3), (3, 13), (11, 3)], strict=True):
        expected[y : y + 5, x : x + 7] = value
    np.testing.assert_array_equal(grid, expected)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (4, 2, 2), (5, 3, 2), (7, 3, 3)])
def test_grid_is_nearly_square_by_default(count, columns, rows):
    grid = make_grid(np.zeros((count, 4, 4, 3), np.uint8), padding=0)
    assert grid.shape == (4 * rows, 4 * columns, 3)


def test_grid_has_no_empty_columns():
    assert make_grid(np.zeros((2, 4, 4, 3), np.uint8), columns=8, padding=0).shape == (4, 8, 3)


def test_captions_stay_under_their_images():
    images_u8 = np.full((2, 64, 64, 3), 100, np.uint8)
    words = "large left pleural effusion with cardiomegaly and a nodule in the right upper lobe"
    grid = make_grid(images_u8, columns=2, padding=2, captions=[words, ""])
    np.testing.assert_array_equal(grid[2:66, 2:66], images_u8[0])
    np.testing.assert_array_equal(grid[2:66, 68:132], images_u8[1])
    text = grid[66:] < 200
    assert text[:, :66].any()
    assert not text[:, 66:].any()  # neither into the neighbour, nor under an empty caption

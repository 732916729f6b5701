"""sample.py --init_image as a user calls it: the files it writes, and mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

import medsd_jax
from medsd_jax.cli.main import exit_code
from medsd_jax.data.transforms import resize
from medsd_jax.sampling.edits import DIFFERENCE_TIMES
from medsd_jax.sampling.images import read_metadata
from medsd_jax.workflows.models import save
from tests import commands
from tests.tiny.pipeline import SIZE, tiny_pipeline

WIDE = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
WHOLE = ["--prompt", "a", "--num_images", "1"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    save(tiny_pipeline(), folder / "model")
    Image.fromarray(WIDE).save(folder / "wide.png")
    Image.fromarray(WIDE[:, :32]).save(folder / "square.png")
    mask = np.zeros((32, 64), np.uint8)
    mask[8:24, 8:40] = 1  # nearly black is not black
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask * 0).save(folder / "black.png")
    (folder / "text.png").write_text("no image")
    return folder


def sample(places, output, *flags):
    words = ["--model", str(places / "model"), "--output", str(output), "--num_steps", "3", *flags]
    return exit_code(lambda: commands.sample([word.replace("HERE", str(places)) for word in words]))


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_box_of_a_wide_image(places, tmp_path):
    flags = ["--prompt", "effusion", "--num_images", "2", "--init_image", "HERE/wide.png"]
    flags += ["--mask_box", "8,8,40,24", "--strength", "1", "--sampler", "dpmpp_2m"]
    assert sample(places, tmp_path / "o", *flags) == 0
    given = resize(WIDE, SIZE, "pad")
    inside = np.zeros((SIZE, SIZE), bool)
    inside[4 + 2 : 4 + 6, 2:10] = True  # a quarter of the size, under a black bar of 4 pixels
    lines = [json.loads(x) for x in (tmp_path / "o/samples.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["00000.png", "00001.png"]
    for line in lines:
        drawn, name = read(tmp_path / "o" / line["file"]), line["file"][:-4]
        np.testing.assert_array_equal(drawn[~inside], given[~inside])
        assert (drawn[inside] != given[inside]).mean() > 0.5
        original, result, difference = np.split(read(tmp_path / f"o/{name}_pair.png"), 3, axis=1)
        np.testing.assert_array_equal(original, given)
        np.testing.assert_array_equal(result, drawn)
        far = np.abs(drawn.astype(int) - given) * DIFFERENCE_TIMES
        np.testing.assert_array_equal(difference, far.clip(max=255))
        metadata = read_metadata(tmp_path / "o" / f"{name}_pair.png")
        assert metadata["difference_times"] == DIFFERENCE_TIMES and metadata["seed"] == line["seed"]
        assert line["mask"] == {"box": [8, 8, 40, 24]} and line["strength"] == 1
        assert line["init_image"] == str(places / "wide.png") and line["resize_mode"] == "pad"
    assert read_metadata(tmp_path / "o/00001.png")["mask"] == {"box": [8, 8, 40, 24]}


@pytest.mark.parametrize(
    ("flags", "mask"),
    [
        (["--mask", "HERE/mask.png"], "file"),
        (["--mask_polygon", "8,8 39,8 39,23 8,23"], "polygon"),
    ],
)
def test_the_same_mask_in_other_words(places, tmp_path, flags, mask):
    common = [*WHOLE, "--init_image", "HERE/wide.png"]
    assert sample(places, tmp_path / "box", *common, "--mask_box", "8,8,40,24") == 0
    assert sample(places, tmp_path / "other", *common, *flags) == 0
    box, other = (read(tmp_path / name / "00000.png") for name in ("box", "other"))
    np.testing.assert_array_equal(box, other)
    line = json.loads((tmp_path / "other/samples.jsonl").read_text())
    assert list(line["mask"]) == [mask] and line["strength"] == 0.8


def test_a_moved_image_is_the_same_and_another_one_is_refused(places, tmp_path, capsys):
    image = tmp_path / "given.png"
    Image.fromarray(WIDE).save(image)
    output = tmp_path / "o"
    assert sample(places, output, *WHOLE, "--init_image", str(image)) == 0
    moved = image.rename(tmp_path / "moved.png")
    assert sample(places, output, *WHOLE, "--init_image", str(moved)) == 0
    Image.fromarray(WIDE[::-1]).save(moved)
    assert sample(places, output, *WHOLE, "--init_image", str(moved)) == 2
    assert "00000.png was made with edit_hash = " in capsys.readouterr().err


def test_a_mask_as_a_drawing_program_saves_it(places, tmp_path, caplog):
    with Image.open(places / "mask.png") as image:
        mask = np.asarray(image.convert("L")) > 0
    Image.fromarray(np.where(mask, 255, 3).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=90)
    for name in ("mask.png", "mask.jpg"):
        caplog.clear()
        with caplog.at_level("INFO"):
            flags = [*WHOLE, "--init_image", str(places / "wide.png")]
            mask_flags = ["--mask", str(tmp_path / name)]
            assert sample(places, tmp_path / f"out-{name}", *flags, *mask_flags) == 0
        assert f"{100 * mask.mean():.1f} % of the image is redrawn" in caplog.text


def test_without_a_mask_all_of_the_image_changes(places, tmp_path):
    flags = [*WHOLE, "--init_image", "HERE/wide.png", "--resize_mode", "squash", "--seed", "4"]
    assert sample(places, tmp_path / "o", *flags) == 0
    expected = medsd_jax.sample(
        tiny_pipeline(), ["a"], seeds=[4], num_steps=3, progress=False,
        init_images=resize(WIDE, SIZE, "squash"), strength=0.8,
    )  # fmt: skip
    np.testing.assert_array_equal(read(tmp_path / "o/00000.png"), expected[0])
    assert json.loads((tmp_path / "o/samples.jsonl").read_text())["mask"] is None


INIT = ["--init_image", "HERE/wide.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask", "HERE/mask.png"], "--mask needs --init_image"),
        (["--mask_box", "0,0,4,4"], "--mask_box needs --init_image"),
        (["--mask_polygon", "0,0 4,4 0,4"], "--mask_polygon needs --init_image"),
        (["--strength", "0.5"], "--strength needs --init_image"),
        (["--resize_mode", "pad"], "--resize_mode needs --init_image"),
        (["--init_image", "absent.png"], "absent.png cannot be read as an image"),
        (["--init_image", "HERE/text.png"], "text.png cannot be read as an image"),
        ([*INIT, "--strength", "0"], "strength = 0.0 must be above 0"),
        ([*INIT, "--strength", "1.5"], "strength = 1.5 must be above 0 and at most 1"),
        ([*INIT, "--strength", "0.1"], "strength = 0.1 leaves no step of num_steps = 3"),
        ([*INIT, "--mask_box", "0,0,65,9"], "mask box 0,0,65,9 must lie within the image of 64"),
        ([*INIT, "--mask_box=-1,0,6,9"], "mask box -1,0,6,9 must lie within"),
        ([*INIT, "--mask_box", "0,0,6"], "box needs 4 numbers x0,y0,x1,y1, not 3"),
        ([*INIT, "--mask_box", "a,0,6,9"], "'a,0,6,9' is not a list of numbers"),
        ([*INIT, "--mask_box", "0,0,1,1"], "covers no pixel of the image once it has 16 x 16"),
        ([*INIT, "--mask_polygon", "0,0 9,9"], "at least 3 corners, not 2"),
        ([*INIT, "--mask_polygon", "0,0 9,9 70,2"], "corner 70,2 of the mask polygon"),
        ([*INIT, "--mask_polygon", "0,0 9"], "is not a list of corners"),
        ([*INIT, "--mask", "absent.png"], "absent.png cannot be read as an image"),
        ([*INIT, "--mask", "HERE/black.png"], "black all over"),
        ([*INIT, "--mask", "HERE/square.png"], "square.png has 32 x 32 pixels, the image"),
        ([*INIT, "--mask", "HERE/mask.png", "--mask_box", "0,0,4,4"], "not allowed with"),
        ([*INIT, "--height", "16", "--width", "32"], "--height is 16 and --width 32"),
        ([*INIT, "--resize_mode", "stretch"], "invalid choice: 'stretch'"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(places, tmp_path, capsys, flags, message):
    assert sample(places, tmp_path / "out", *WHOLE, *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("medsd_jax: error:") and message in error
    assert not (tmp_path / "out").exists()

"""Pixels against transformers' own processors in their form for Pillow, to the last bit."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.vision.image_processor import image_processor, read_image_processor
from tests.vision import towers

SQUARE = {**towers.DINOV2_PROCESSOR, "size": {"height": 40, "width": 40}}
PROCESSORS = {
    "clip": (transformers.CLIPImageProcessorPil, towers.CLIP_PROCESSOR),
    "rad-dino": (transformers.BitImageProcessorPil, towers.RAD_DINO_PROCESSOR),
    "dinov2": (transformers.BitImageProcessorPil, towers.DINOV2_PROCESSOR),
    "square": (
        transformers.BitImageProcessorPil,
        {**SQUARE, "crop_size": {"height": 33, "width": 33}},
    ),
    "no-crop": (transformers.BitImageProcessorPil, {**SQUARE, "do_center_crop": False}),
    "bilinear": (
        transformers.CLIPImageProcessorPil,
        {**towers.CLIP_PROCESSOR, "resample": 2, "size": 31, "crop_size": 30},
    ),
}
# Larger and smaller than every target, in one side only, of the target's size, odd, and a strip.
SIZES = [(600, 531), (64, 64), (300, 200), (224, 224), (518, 518), (519, 1040), (333, 90), (7, 240)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_transformers(name, height, width, channels):
    cls, values = PROCESSORS[name]
    image = towers.image(height, width, channels)
    # Of an array transformers would guess where the channels are.
    theirs = cls(**values)(Image.fromarray(image), return_tensors="np")["pixel_values"]
    ours = image_processor(values, "here").batch([image])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, np.moveaxis(theirs, 1, -1))


@pytest.mark.parametrize("change", [{"resample": 2}, {"crop_size": 222}, {"rescale_factor": 0.004}])
def test_a_setting_is_seen_in_the_pixels(change):
    """Otherwise equality would prove nothing about it."""
    image = towers.image(300, 251, 3)
    ours, other = (
        image_processor({**towers.CLIP_PROCESSOR, **change}, "here")(image)
        for change in ({}, change)
    )
    assert ours.shape != other.shape or not np.array_equal(ours, other)


@pytest.mark.parametrize("name", PROCESSORS)
def test_black_and_white_become_the_stated_range(name):
    _, values = PROCESSORS[name]
    chain = image_processor(values, "here")
    for value, stated in ((0, chain.low), (255, chain.high)):
        out = chain(np.full((40, 50), value, np.uint8))
        assert out.shape == (chain.size, chain.size, 3)
        np.testing.assert_array_equal(out[..., 0], np.float32(stated))


def test_the_words_hold_every_number():
    assert image_processor(towers.RAD_DINO_PROCESSOR, "here").steps == (
        "grey repeated to RGB; Pillow bicubic in 8 bits, shorter side to 518; centre crop 518x518; "
        "0.00392156862745098 x minus (0.5307, 0.5307, 0.5307) over (0.2583, 0.2583, 0.2583), per "
        "channel"
    )
    assert "to 40x40 without keeping the aspect ratio" in image_processor(SQUARE | {
        "crop_size": 33
    }, "here").steps  # fmt: skip


@pytest.mark.parametrize("cls", [transformers.CLIPImageProcessorPil,
                                 transformers.BitImageProcessorPil])  # fmt: skip
def test_reads_what_transformers_writes(tmp_path, cls):
    """All defaults; also as one part of a processor_config.json, which then comes first."""
    cls(size=30, crop_size=28).save_pretrained(tmp_path)
    alone = read_image_processor(tmp_path)
    assert alone.size == 28
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    nested = {"image_processor": {**values, "resample": 2}, "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_image_processor(tmp_path).steps == alone.steps.replace("bicubic", "bilinear")
    # One of before transformers 5 says nothing about images.
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert read_image_processor(tmp_path).steps == alone.steps


def test_null_stands_for_the_default():
    """As written by the processors for torchvision before transformers 5."""
    values = {**towers.CLIP_PROCESSOR, "do_rescale": None, "do_pad": None, "device": None}
    values |= {"image_mean": None, "rescale_factor": None}
    expected = image_processor(towers.CLIP_PROCESSOR, "here").steps
    assert image_processor(values, "here").steps == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type = 'ViTImageProc"),
        ({"do_resize": False}, "do_resize = False is not supported"),
        ({"do_rescale": False}, "do_rescale = False"),
        ({"do_normalize": False}, "do_normalize = False"),
        ({"do_convert_rgb": False}, "do_convert_rgb = False"),
        ({"do_pad": True}, "do_pad = True"),
        ({"resample": 1}, "resample = 1 is not supported"),
        ({"size": {"longest_edge": 9}}, r"size = \{'longest_edge': 9\} is not supported"),
        ({"size": {"shortest_edge": 9, "longest_edge": 9}}, "is not supported"),
        ({"size": {"height": 30, "width": 40}}, r"size = \{'height': 30, 'width': 40\} is not"),
        ({"size": {"shortest_edge": 0.5}}, "size = 0.5 is not a number of pixels"),
        ({"size": 200}, "crop_size = 224 is larger than size = 200"),
        ({"crop_size": {"height": 30, "width": 40}}, "crop_size = .* is not supported"),
        ({"do_center_crop": False}, "size = 224 without do_center_crop"),
        ({"image_mean": [0.5]}, r"image_mean = \(0.5,\) is not supported"),
        ({"image_std": [0.5, 0.0, 0.5]}, "divides by zero"),
        ({"patch_size": 14}, "unknown key 'patch_size'"),
    ],
)
def test_what_is_not_implemented_is_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        image_processor({**towers.CLIP_PROCESSOR, **change}, "somewhere.json")
    assert str(error.value).startswith("somewhere.json: ")
    assert "\n" not in str(error.value)


def test_without_a_file_the_way_out_is_said(tmp_path):
    with pytest.raises(UserError, match=r"holds no preprocessor_config\.json, which says how"):
        read_image_processor(tmp_path)


def test_fractions_are_refused():
    with pytest.raises(UserError, match="8-bit"):
        image_processor(towers.CLIP_PROCESSOR, "here")(np.full((4, 4), 0.5))

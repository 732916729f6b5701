"""preprocessor_config.json of CLIP and DINOv2: transformers' image processors, without torch.

The steps are those of CLIPImageProcessor and BitImageProcessor, which are one and the same, in
their form for Pillow (CLIPImageProcessorPil, BitImageProcessorPil; before transformers 5 these were
the slow ones): RGB, resize in 8 bits, centre crop, scale, mean and standard deviation. The form for
torchvision resizes otherwise and differs by one grey level here and there.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.interop.model_index import read_json
from medsd_jax.models.config import JsonConfig
from medsd_jax.vision.preprocessing import BICUBIC, BILINEAR, Preprocessing

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_FILTERS = {2: BILINEAR, 3: BICUBIC}


_LARGEST = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings(JsonConfig):
    """The file's keys; names and defaults are transformers' own.

    Attributes:
        size: {"shortest_edge": n}, which a bare n means too, or {"height": n, "width": n}.
        crop_size: {"height": n, "width": n}, which a bare n means too.
        resample: Pillow's number of the filter.
    """

    size: int | dict = 224
    resample: int = 3
    do_center_crop: bool = True
    crop_size: int | dict = 224
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    _CLASS_NAME = "CLIPImageProcessor and BitImageProcessor"
    _NOTES = frozenset(
        "_valid_processor_keys data_format device disable_grouping image_seq_length "
        "input_data_format model_input_names pad_size processor_class return_tensors".split()
    )
    _FIXED: ClassVar[Mapping[str, tuple]] = {
        "default_to_square": (False,),
        "do_convert_rgb": (True,),
        "do_normalize": (True,),
        "do_pad": (False,),
        "do_rescale": (True,),
        "do_resize": (True,),
        "feature_extractor_type": ("CLIPFeatureExtractor",),
        "image_processor_type": (
            "CLIPImageProcessor",
            "CLIPImageProcessorFast",
            "CLIPFeatureExtractor",
            "BitImageProcessor",
            "BitImageProcessorFast",
        ),
        "use_square_size": (False,),
    }

    def _check(self, where: str) -> None:
        if self.resample not in _FILTERS:
            raise UserError(
                f"{where}: resample = {self.resample} is not supported (only 2, bilinear, or 3, "
                "bicubic)"
            )
        for key in ("image_mean", "image_std"):
            if len(getattr(self, key)) != 3:
                raise UserError(
                    f"{where}: {key} = {getattr(self, key)} is not supported (three numbers)"
                )
        numbers = (self.rescale_factor, *self.image_mean, *self.image_std)
        if not all(abs(x) <= _LARGEST for x in numbers):  # NaN, too
            raise UserError(
                f"{where}: rescale_factor = {self.rescale_factor}, image_mean = {self.image_mean} "
                f"and image_std = {self.image_std} must be numbers of at most {_LARGEST:g}"
            )
        if any(abs(x) < 1 / _LARGEST for x in self.image_std):
            raise UserError(f"{where}: image_std = {self.image_std} divides by zero")


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Sides in pixels.

    Attributes:
        shorter: of the resized image, which keeps its shape; None where it becomes a square.
        square: of that square; else the same as `shorter`.
        crop: of the square that is cut from the middle.
    """

    shorter: int | None
    square: int
    crop: int


def read_image_processor(folder: Path) -> Preprocessing:
    """The input chain that a transformers folder states.

    Args:
        folder: with a preprocessor_config.json, or with a processor_config.json that holds an
            image processor, which transformers 5 writes and prefers.

    Raises:
        UserError: there is none, or it asks for steps that are not implemented.
    """
    for name in PROCESSOR_FILES:
        path = folder / name
        if not path.is_file():
            continue
        values = read_json(path)
        if name == PROCESSOR_FILES[0]:
            # Older ones hold settings of the text only.
            if not isinstance(values := values.get("image_processor"), dict):
                continue
        return image_processor(values, str(path))
    raise UserError(
        f"{folder} holds no preprocessor_config.json, which says how images are resized and "
        "scaled; copy the one that was published with the weights"
    )


def image_processor(values: Mapping[str, Any], where: str) -> Preprocessing:
    """The input chain of these settings.

    Args:
        values: the JSON object; null stands for transformers' default.
        where: the file's name, for errors.

    Raises:
        UserError: a key or a value that is not implemented.
    """
    given = {key: value for key, value in values.items() if value is not None}
    for key in ("rescale_factor", "image_mean", "image_std"):
        given |= {key: _as_floats(given[key])} if key in given else {}
    settings = _Settings.from_dict(given, where)
    geometry = _geometry(settings, where)
    resampling = _FILTERS[settings.resample]
    to = (
        f"to {geometry.square}x{geometry.square} without keeping the aspect ratio"
        if geometry.shorter is None
        else f"shorter side to {geometry.shorter}"
    )
    mean, std = (np.float32(x) for x in (settings.image_mean, settings.image_std))
    black, white = (
        float((np.float32(level * settings.rescale_factor) - mean[0]) / std[0])
        for level in (0, 255)
    )
    return Preprocessing(
        "image-processor",
        geometry.crop,
        3,
        black,
        white,
        f"grey repeated to RGB; Pillow {resampling.name.lower()} in 8 bits, {to}; centre crop "
        f"{geometry.crop}x{geometry.crop}; {settings.rescale_factor} x minus "
        f"{settings.image_mean} over {settings.image_std}, per channel",
        functools.partial(
            _prepare,
            geometry=geometry,
            resampling=resampling,
            scale=settings.rescale_factor,
            mean=mean,
            std=std,
        ),
    )


def _as_floats(value: Any) -> Any:
    """Whole numbers as floats, since JSON writes 1.0 as 1 at times; all else as it is."""
    if isinstance(value, list):
        return [_as_floats(x) for x in value]
    if type(value) is not int:
        return value
    return float(value) if abs(value) < 1e300 else math.inf


def _geometry(settings: _Settings, where: str) -> _Geometry:
    size = {"shortest_edge": settings.size} if type(settings.size) is int else settings.size
    shorter = None
    if size.keys() == {"shortest_edge"}:
        shorter = square = _side(size["shortest_edge"], "size", where)
    else:
        square = _square(size, "size", where)
    if not settings.do_center_crop:
        if shorter is not None:
            raise UserError(
                f"{where}: size = {settings.size} without do_center_crop leaves images of "
                "different shapes, which no batch can hold; set do_center_crop to true"
            )
        return _Geometry(None, square, square)
    crop = settings.crop_size
    crop = (
        _side(crop, "crop_size", where) if type(crop) is int else _square(crop, "crop_size", where)
    )
    if crop > square:
        raise UserError(
            f"{where}: crop_size = {settings.crop_size} is larger than size = {settings.size}, "
            "which would add black margins: not supported"
        )
    return _Geometry(shorter, square, crop)


def _square(size: Mapping[str, Any], key: str, where: str) -> int:
    if size.keys() != {"height", "width"} or size["height"] != size["width"]:
        other = ' or {"shortest_edge": n}' if key == "size" else ""
        raise UserError(
            f'{where}: {key} = {dict(size)} is not supported (only {{"height": n, "width": n}}'
            f"{other})"
        )
    return _side(size["height"], key, where)


def _side(value: Any, key: str, where: str) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {key} = {value!r} is not a number of pixels")
    return value


def _prepare(
    pixels: np.ndarray,
    *,
    geometry: _Geometry,
    resampling: Image.Resampling,
    scale: float,
    mean: np.ndarray,
    std: np.ndarray,
) -> np.ndarray:
    """[H, W, 1 or 3] float32 in [0, 255] -> [crop, crop, 3] float32."""
    if not np.array_equal(pixels, np.rint(pixels)):
        raise UserError("this chain resizes 8-bit images; round the pixels to whole numbers")
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)
    height, width = rgb.shape[:2]
    if geometry.shorter is None:
        new_height = new_width = geometry.square
    else:
        shorter = min(height, width)
        # The longer side is cut to a whole number.
        new_height, new_width = (int(geometry.shorter * x / shorter) for x in (height, width))
    resized = np.asarray(Image.fromarray(rgb).resize((new_width, new_height), resampling))
    top, left = (new_height - geometry.crop) // 2, (new_width - geometry.crop) // 2
    cut = resized[top : top + geometry.crop, left : left + geometry.crop]
    # In float64 first, as transformers does it: the product in float32 rounds otherwise.
    return ((cut.astype(np.float64) * scale).astype(np.float32) - mean) / std

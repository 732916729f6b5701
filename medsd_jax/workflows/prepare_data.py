"""A data set prepared for training, and a contact sheet to look at."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from medsd_jax.arrays import evenly_spread
from medsd_jax.data.dataset import Dataset, open_dataset
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.sources.folder import write_image_folder
from medsd_jax.data.transforms import load_image
from medsd_jax.errors import UserError
from medsd_jax.files import atomic_write
from medsd_jax.sampling.images import make_grid

_log = logging.getLogger(__name__)

_SHEET_PIXELS = 192


def prepare_data(
    source: str,
    path: str | None,
    output: Path,
    *,
    params: Mapping[str, object] | None = None,
    validation_fraction: float = 0.1,
    resize_mode: str = "pad",
    num_shown: int = 20,
) -> tuple[Dataset, Path | None]:
    """Prepares a data set and writes OUTPUT/contact_sheet.png.

    Args:
        source: "phantom", "folder" or "nih14".
        path: folder of the images; None for phantoms.
        output: the folder of the prepared data.
        params: of the source, see `medsd_jax.open_dataset`.
        validation_fraction: share of the patients that validate, where the source names no split.
        resize_mode: how the contact sheet makes images square.
        num_shown: images on the contact sheet.

    Returns:
        The data set, and the contact sheet; None where this user may not write it.

    Raises:
        UserError: the data cannot be read, or the folder is none.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; name a folder")
    dataset = open_dataset(
        source, path, params=params, cache_dir=output, validation_fraction=validation_fraction
    )
    sheet = output / "contact_sheet.png"
    if not os.access(output, os.W_OK):  # somebody else's cache is fine to read
        _log.warning("%s is not written: this user may not write there", sheet)
        return dataset, None
    with atomic_write(sheet) as part:
        Image.fromarray(contact_sheet(dataset, num_shown, resize_mode)).save(part)
    return dataset, sheet


def write_phantom_folder(folder: Path, **params: int) -> int:
    """Writes phantoms as an image folder with metadata.csv; returns how many.

    Args:
        folder: a new or empty one.
        params: num_images (3000 if it is not given), seed, image_size.
    """
    records = phantom_records(**{"num_images": 3000, **params})
    write_image_folder(records, folder)
    return len(records)


def contact_sheet(dataset: Dataset, num_shown: int, resize_mode: str = "pad") -> np.ndarray:
    """Lays out images with captions, evenly spread over the set.

    Args:
        dataset: prepared.
        num_shown: how many; fewer when the set is smaller.
        resize_mode: how images become square.

    Returns:
        [H, W, 3] uint8.
    """
    everything = [(s, i) for s in (dataset.train, dataset.validation) for i in range(len(s))]
    images, captions = [], []
    for split, index in (everything[i] for i in evenly_spread(len(everything), num_shown)):
        record = split[index]
        images.append(load_image(record.read_bytes(), _SHEET_PIXELS, resize_mode))
        captions.append(f"{split.name}: {record.text}")
    return make_grid(np.stack(images), columns=5, padding=4, captions=captions)

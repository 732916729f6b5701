"""``python -m medsd_jax data``: prepare a data set and show what is in it."""

import numpy as np

from medsd_jax.arrays import evenly_spread
from medsd_jax.data.dataset import Dataset
from medsd_jax.data.transforms import load_image
from medsd_jax.sampling.images import make_grid

_SHEET_PIXELS = 192


def contact_sheet(dataset: Dataset, num_shown: int, resize_mode: str = "pad") -> np.ndarray:
    """Lay out pictures with captions, evenly spread over the set.

    Args:
        dataset: prepared.
        num_shown: how many; fewer when the set is smaller.
        resize_mode: how pictures become square.

    Returns:
        [H, W, 3] uint8.
    """
    everything = [(s, i) for s in (dataset.train, dataset.validation) for i in range(len(s))]
    pictures, captions = [], []
    for split, index in (everything[i] for i in evenly_spread(len(everything), num_shown)):
        record = split[index]
        pictures.append(load_image(record.read_bytes(), _SHEET_PIXELS, resize_mode))
        captions.append(f"{split.name}: {record.text}")
    return make_grid(np.stack(pictures), columns=5, padding=4, captions=captions)

"""Which generated images are independent draws: those that share a start noise are not."""

import logging
from collections.abc import Hashable, Sequence
from pathlib import Path

from medsd_jax.data.sources.tables import read_json_lines
from medsd_jax.evaluation.images.image_sets import ImageSet
from medsd_jax.evaluation.images.tables import SAMPLES_FILE, find_table

_log = logging.getLogger(__name__)

_MIN_SEEDS = 10
"""With fewer start noises their spread is not known, and each image counts by itself."""


def seeds_of(images: ImageSet) -> list[Hashable] | None:
    """The seed of each image, from the samples.jsonl of sample.py; None if there is none."""
    table = find_table(Path(images.name))
    if table is None or table.name != SAMPLES_FILE:
        return None
    seeds: dict[str, Hashable] = {}
    for _, entry in read_json_lines(table).rows:
        seed = entry.get("seed")
        if isinstance(seed, int | str):
            seeds[str(table.parent / str(entry["file"]))] = seed
    # An image without a seed is its own draw.
    return [seeds.get(key, key) for key in images.keys] if seeds else None


def units_of_seeds(
    seeds: Sequence[Hashable] | None, prompts: Sequence[str], name: str = "synthetic"
) -> list[str] | None:
    """The unit of each generated image.

    Args:
        seeds: [m], of their start noise; None where they are not known.
        prompts: [m].
        name: How the warning calls the set.

    Returns:
        [m], equal for images of one start noise; where there are too few of these to count by,
        equal for exact copies alone (one seed and one prompt). None: all are independent.
    """
    if seeds is None or len(set(seeds)) == len(seeds):
        return None
    if len(set(seeds)) >= _MIN_SEEDS:
        return [str(seed) for seed in seeds]
    units = [f"{seed} {prompt}" for seed, prompt in zip(seeds, prompts, strict=True)]
    _log.warning(
        "%s: %d images share %d start noises, too few to count by: intervals take those of "
        "different prompts (%d) for independent and may be too narrow",
        name, len(seeds), len(set(seeds)), len(set(units)),
    )  # fmt: skip
    return units

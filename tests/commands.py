"""What train.py and sample.py do, called in this process; mistakes are raised."""

from collections.abc import Sequence

import medsd_jax.cli.sample
import medsd_jax.cli.train


def train(words: Sequence[str]) -> int | None:
    """``python train.py WORDS``."""
    return medsd_jax.cli.train.run_words(list(words), "python train.py")


def sample(words: Sequence[str]) -> int | None:
    """``python sample.py WORDS``."""
    return medsd_jax.cli.sample.run_words(list(words), "python sample.py")

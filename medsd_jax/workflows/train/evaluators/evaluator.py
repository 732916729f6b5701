"""What a metric during training is, and what a run shares with all of its metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax.arrays import Params
from medsd_jax.data.tfds_builder import RecordSplit


@dataclass
class SharedByMetrics:
    """What a run shares with its metrics.

    Attributes:
        config: of the run.
        validation: the validation split.
        mesh: the devices.
        draw: ``(params, prompts, seeds) -> images``, as `sample` says.
        validation_loss: of the weights that are measured now; None where the run has none.
    """

    config: ConfigDict
    validation: RecordSplit
    mesh: Mesh
    draw: Callable[[Params, Sequence[str], Sequence[int]], np.ndarray]
    validation_loss: float | None = None
    _drawn: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)

    def captions(self) -> list[str]:
        """`evaluation.num_images` captions, spread evenly over the validation split."""
        count = self.config.evaluation.num_images
        rows = np.arange(count) * len(self.validation) // count
        return [self.validation.texts[row] for row in rows]

    def sample(self, params: Params, prompts: Sequence[str]) -> np.ndarray:
        """An image of each prompt, drawn once for all metrics of a step.

        Args:
            params: all weights, as the metric was given them.
            prompts: n texts; image i starts from the seed evaluation.seed + i.

        Returns:
            [n, H, W, 3] uint8, to be left as it is.
        """
        key = tuple(prompts)
        if key not in self._drawn:
            first = self.config.evaluation.seed
            self._drawn[key] = self.draw(params, prompts, [first + i for i in range(len(key))])
        return self._drawn[key]

    def next_weights(self, validation_loss: float | None) -> None:
        """Forgets the images of the weights before."""
        self._drawn.clear()
        self.validation_loss = validation_loss


class Evaluator:
    """A metric during training; the class of your own derives from this one.

    All processes build and call it, and all of them yield the same.

    Attributes:
        scalars: every scalar that it can yield -> whether larger is better.
        run: what the run shares.
        names: which of `scalars` to yield, all of them.
    """

    scalars: ClassVar[Mapping[str, bool]]

    def __init__(self, run: SharedByMetrics, names: tuple[str, ...]):
        """Loads what it needs, before the first step."""
        self.run, self.names = run, names

    @classmethod
    def check(cls, config: ConfigDict, names: tuple[str, ...]) -> None:
        """Raises UserError where the run's config cannot be meant; nothing is loaded yet."""

    def __call__(self, params: Params, step: int) -> Iterable[tuple[str, float]]:
        """Measures.

        Args:
            params: all weights, on the devices.
            step: optimizer steps done.

        Returns:
            Pairs of a scalar's name and its value.
        """
        raise NotImplementedError

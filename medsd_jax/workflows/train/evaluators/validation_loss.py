"""The loss of the fixed validation images, as a metric by which the best weights are kept."""

from collections.abc import Iterator
from typing import ClassVar

from medsd_jax.arrays import Params
from medsd_jax.workflows.train.evaluators.evaluator import Evaluator


class ValidationLoss(Evaluator):
    """What the training loop has just measured."""

    scalars: ClassVar[dict[str, bool]] = {"validation_loss": False}

    def __call__(self, params: Params, step: int) -> Iterator[tuple[str, float]]:
        """See `Evaluator`."""
        assert self.run.validation_loss is not None
        yield "validation_loss", self.run.validation_loss

"""How often a classifier sees in sampled images what their prompts ask for."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from ml_collections import ConfigDict

from medsd_jax.arrays import Params
from medsd_jax.classifier.model import load_classifier
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.prompt_adherence import measure_adherence
from medsd_jax.workflows.train.evaluators.evaluator import Evaluator, SharedByMetrics


class PromptAccuracy(Evaluator):
    """Half of the images with the finding; the other half from the same seeds without it."""

    scalars: ClassVar[dict[str, bool]] = {"prompt_accuracy": True}

    @classmethod
    def check(cls, config: ConfigDict, names: tuple[str, ...]) -> None:
        """See `Evaluator`."""
        settings = config.evaluation
        if settings.classifier is None:
            raise UserError(
                "evaluation.metrics: 'prompt_accuracy' needs evaluation.classifier, the folder "
                "that train-classifier wrote"
            )
        if settings.num_images < 2 or not settings.prompts_with or not settings.prompts_without:
            raise UserError(
                "'prompt_accuracy' needs evaluation.prompts_with, evaluation.prompts_without and "
                f"an evaluation.num_images of at least 2, not {settings.num_images}"
            )

    def __init__(self, run: SharedByMetrics, names: tuple[str, ...]):
        super().__init__(run, names)
        settings, image_size = run.config.evaluation, run.config.data.image_size
        self._classifier = load_classifier(Path(settings.classifier).expanduser())
        self._classifier.column(settings.label)
        if self._classifier.image_size != image_size:
            raise UserError(
                f"evaluation.classifier = {settings.classifier} sees images of "
                f"{self._classifier.image_size} pixels, but data.image_size = {image_size}"
            )

    def __call__(self, params: Params, step: int) -> Iterator[tuple[str, float]]:
        """See `Evaluator`."""
        settings = self.run.config.evaluation
        half = settings.num_images // 2
        images, prompts, answers = [], [], []
        for expected, group in ((True, settings.prompts_with), (False, settings.prompts_without)):
            texts = [group[i % len(group)] for i in range(half)]
            images.append(self.run.sample(params, texts))
            prompts += texts
            answers += [expected] * half
        result = measure_adherence(
            self._classifier, settings.label, np.concatenate(images), prompts, answers
        )
        yield "prompt_accuracy", float(result.right.mean())

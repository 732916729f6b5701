"""Does a generated picture show what its prompt asked for, as in arXiv 2210.04133, section 4.

A classifier that has seen real pictures alone judges the pictures of each prompt. The headline is
the share of pictures in which it agrees with the prompt, over all prompts together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.evaluation.classifier import Classifier, predict
from medsd_jax.evaluation.intervals import wilson_interval


@dataclasses.dataclass(frozen=True)
class PromptJudgement:
    """What the judge says of every picture.

    Attributes:
        label: the finding in question.
        prompts: [n], of each picture.
        asked: [n] bool, whether the prompt asks for the finding.
        probability: [n] float32, the judge's that the finding is there.
    """

    label: str
    prompts: tuple[str, ...]
    asked: np.ndarray
    probability: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """[n] bool, whether the judge calls the finding present."""
        return self.probability > 0.5

    @property
    def right(self) -> np.ndarray:
        """[n] bool, whether picture and prompt agree."""
        return self.seen == self.asked

    def to_dict(self) -> dict[str, Any]:
        """The report's entry.

        Returns:
            label; prompt_accuracy (value, n, ci95 by Wilson: pictures of different seeds are
            independent); prompts: of each prompt whether it asks for the finding, the number of
            pictures, in how many the finding is seen, and the accuracy.
        """
        by_prompt = []
        for prompt in dict.fromkeys(self.prompts):
            rows = np.array([p == prompt for p in self.prompts])
            by_prompt.append(
                {
                    "prompt": prompt,
                    "asks": bool(self.asked[rows][0]),
                    "num_images": int(rows.sum()),
                    "num_seen": int(self.seen[rows].sum()),
                    "accuracy": wilson_interval(
                        int(self.right[rows].sum()), int(rows.sum())
                    ).to_dict(),
                }
            )
        overall = wilson_interval(int(self.right.sum()), len(self.right))
        return {"label": self.label, "prompt_accuracy": overall.to_dict(), "prompts": by_prompt}


def judge_prompts(
    classifier: Classifier,
    label: str,
    images_u8: np.ndarray,
    prompts: Sequence[str],
    asked: Sequence[bool],
) -> PromptJudgement:
    """Lets the classifier say in which pictures the finding is.

    Args:
        classifier: trained on real pictures alone.
        label: the finding, one of the classifier's.
        images_u8: [n, H, W, 3] uint8, one a seed.
        prompts: [n], what each picture was sampled from.
        asked: [n], whether that prompt asks for the finding.

    Raises:
        UserError: the classifier does not know the label, or the lengths do not agree.
    """
    if not len(images_u8) == len(prompts) == len(asked) > 0:
        given = f"{len(images_u8)} pictures, {len(prompts)} prompts, {len(asked)} answers"
        raise UserError(f"{given}: a judgement needs as many of each, and at least one")
    column = classifier.column(label)
    probability = predict(classifier, images_u8)[:, column]
    return PromptJudgement(label, tuple(prompts), np.asarray(asked, bool), probability)

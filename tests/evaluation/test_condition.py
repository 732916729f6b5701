"""The headline number: agreement of pictures with their prompts."""

import dataclasses

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.evaluation import condition
from medsd_jax.evaluation.condition import judge_prompts

PLAIN, ASKING = "A photo of a lung xray", "... with a visible pleural effusion"
PROMPTS = [PLAIN] * 4 + [ASKING] * 4
ASKED = [False] * 4 + [True] * 4


@pytest.fixture
def judgement(classifier, monkeypatch):
    """One of eight pictures shows the finding though it was not asked for."""
    seen = np.float32([0.1, 0.2, 0.9, 0.4, 0.6, 0.7, 0.8, 0.99])
    monkeypatch.setattr(condition, "predict", lambda *_: np.stack([seen, 1 - seen], axis=1))
    return judge_prompts(classifier, "effusion", np.zeros((8, 24, 24, 3), np.uint8), PROMPTS, ASKED)


def test_agreement_is_counted_by_prompt(judgement):
    told = judgement.to_dict()
    assert told["prompt_accuracy"]["value"] == 7 / 8 and told["prompt_accuracy"]["n"] == 8
    low, high = told["prompt_accuracy"]["ci95"]
    assert low < 7 / 8 < high
    plain, asking = told["prompts"]
    assert (plain["prompt"], plain["asks"], plain["num_seen"]) == (PLAIN, False, 1)
    assert (asking["prompt"], asking["asks"], asking["num_seen"]) == (ASKING, True, 4)
    assert plain["accuracy"]["value"] == 0.75 and asking["accuracy"]["value"] == 1.0


def test_swapped_prompts_give_the_complement(judgement):
    swapped = dataclasses.replace(judgement, asked=~judgement.asked)
    assert swapped.to_dict()["prompt_accuracy"]["value"] == 1 / 8


def test_mistakes_are_told(classifier):
    pictures = np.zeros((2, 24, 24, 3), np.uint8)
    with pytest.raises(UserError, match="2 pictures, 1 prompts, 2 answers"):
        judge_prompts(classifier, "effusion", pictures, [PLAIN], [True, False])
    with pytest.raises(UserError, match="'edema'"):
        judge_prompts(classifier, "edema", pictures, [PLAIN] * 2, [False] * 2)

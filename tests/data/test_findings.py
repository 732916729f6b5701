"""Reading findings from prompts; the truth is what the captions were written from."""

import itertools

import pytest

from medsd_jax.data import findings
from medsd_jax.data.findings import findings_in
from medsd_jax.data.sources.nih14 import WORDS, caption
from medsd_jax.data.sources.phantom import FINDINGS, phantom_records


def test_every_phantom_caption_is_understood():
    names = [kind.replace(" ", "_") for kind in FINDINGS]
    for record in phantom_records(num_images=1500, seed=5, image_size=16):
        found = findings_in(record.text)
        assert {n: found[n] for n in names} == {n: record.labels[n] for n in names}, record.text


def test_every_nih_caption_is_understood():
    for number, pair in enumerate(itertools.combinations(WORDS.values(), 2)):
        for key in range(3):
            text = caption(list(pair), "PA", f"{number}-{key}")
            said = {name for name, there in findings_in(text).items() if there}
            assert said == {words.replace(" ", "_") for words in pair}, text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No pleural effusion or pneumothorax.", set()),
        ("No pneumothorax. Large left pleural effusion.", {"pleural_effusion"}),
        ("No pneumothorax, but a small effusion.", {"pleural_effusion"}),
        ("Moderate bilateral pleural effusions and mild pulmonary edema.",
         {"pleural_effusion", "edema"}),
        ("Lungs clear without nodule", set()),
        ("Large right-sided pleural effusion. Cardiomegaly.", {"pleural_effusion", "cardiomegaly"}),
        ("Massive opacity", set()),
        ("NO EFFUSION; ENLARGED HEART", {"cardiomegaly"}),
        ("", set()),
    ],
)  # fmt: skip
def test_negation_ends_with_its_clause(text, said):
    assert {name for name, there in findings_in(text).items() if there} == said


def test_all_words_of_captions_have_a_pattern():
    assert set(WORDS.values()) | set(FINDINGS) == set(findings._SPOKEN)

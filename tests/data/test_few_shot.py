"""The paper's ten images: who is chosen, and under which prompt."""

import pytest

from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.few_shot import few_shot
from medsd_jax.errors import UserError

WITH, WITHOUT = "an effusion", "a lung"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return open_dataset(
        "phantom",
        params={"num_images": 120, "image_size": 16},
        cache_dir=tmp_path_factory.mktemp("cache"),
        progress=False,
    ).train


def choose(split, count, label="pleural_effusion"):
    return few_shot(
        split, label=label, prompt_with=WITH, prompt_without=WITHOUT, images_per_prompt=count
    )


def test_five_with_the_finding_alone_and_five_with_none(split):
    chosen = choose(split, 5)
    assert chosen.texts == (WITH,) * 5 + (WITHOUT,) * 5
    for i, labels in enumerate(chosen.labels):
        result = [k for k, v in labels.items() if v == 1 and isinstance(v, int)]
        assert result == (["pleural_effusion"] if i < 5 else ["no_finding"])
        assert chosen[i].text == chosen.texts[i]
        assert chosen[i].image == split[split.keys.index(chosen.keys[i])].image
    for half in (slice(5), slice(5, 10)):
        assert len(set(chosen.patient_ids[half])) == 5


def test_more_images_hold_the_fewer_ones(split):
    few, more = choose(split, 2), choose(split, 4)
    assert few.keys[:2] == more.keys[:2] and few.keys[2:] == more.keys[4:6]


def test_all_of_both_kinds(split):
    chosen = choose(split, None)
    assert len(chosen) > 20
    assert {labels["pleural_effusion"] for labels in chosen.labels} == {0, 1}


def test_other_choices_have_other_names(split):
    """Cached latents are kept under the name."""
    names = [choose(split, 2).name, choose(split, 3).name, choose(split, 2, "nodule").name]
    assert len({*names, split.name}) == 4
    assert choose(split, 2).fingerprint == choose(split, 2).fingerprint


@pytest.mark.parametrize(
    "label, count", [("pleural_effusion", 60), ("hernia", 1), ("hernia", None)]
)
def test_too_few(split, label, count):
    with pytest.raises(UserError, match=f"{label} = 1"):
        choose(split, count, label)

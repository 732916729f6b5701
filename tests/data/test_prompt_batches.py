"""Batches of prompts: every prompt once a pass, a place that can be saved, shares of processes."""

import numpy as np
import pytest

from medsd_jax.data.prompt_batches import PromptBatches, PromptEvalBatches, read_prompts
from medsd_jax.errors import UserError

COLUMNS = {"prompt_ids": np.arange(24).reshape(12, 2), "teacher_ids": np.arange(12)[:, None]}


def loader(columns=COLUMNS, *, size=4, seed=0, index=0, count=1):
    return PromptBatches(
        columns, batch_size=size, seed=seed, rows=np.split(np.arange(size), count)[index]
    )


def test_each_pass_shows_every_prompt_once_in_another_order():
    batches = loader()
    passes = [np.concatenate([next(batches)["teacher_ids"] for _ in range(3)]) for _ in range(2)]
    for rows in passes:
        assert sorted(rows[:, 0]) == list(range(12))
    assert not np.array_equal(*passes)


def test_columns_stay_together():
    batch = next(loader())
    assert np.array_equal(batch["prompt_ids"][:, 0], 2 * batch["teacher_ids"][:, 0])


def test_processes_share_a_batch():
    whole, parts = loader(), [loader(index=i, count=2) for i in (0, 1)]
    for _ in range(4):
        both = np.concatenate([next(part)["teacher_ids"] for part in parts])
        assert np.array_equal(both, next(whole)["teacher_ids"])
    assert parts[0].get_state() == parts[1].get_state() == whole.get_state()


def test_a_saved_place_goes_on():
    batches = loader()
    for _ in range(5):
        next(batches)
    again = loader()
    again.set_state(batches.get_state())
    for _ in range(3):
        assert np.array_equal(next(again)["prompt_ids"], next(batches)["prompt_ids"])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (loader({k: x + 1 for k, x in COLUMNS.items()}), "fingerprint"),
        (loader(size=3), "batch_size 4"),
        (loader(seed=1), "seed 0"),
    ],
)
def test_a_place_among_other_prompts_is_refused(other, what):
    with pytest.raises(UserError, match=what):
        other.set_state(loader().get_state())


def test_too_few_prompts_and_odd_shares():
    with pytest.raises(UserError, match="12 prompts are fewer than one batch of 13"):
        loader(size=13)


def test_validation_is_padded_and_masked():
    batches = PromptEvalBatches(COLUMNS, num_examples=7, batch_size=4)
    for _ in range(2):  # each iteration starts from the first
        first, last = batches
        assert first["mask"].tolist() == [1, 1, 1, 1] and last["mask"].tolist() == [1, 1, 1, 0]
        assert last["teacher_ids"][:, 0].tolist() == [4, 5, 6, 6]


def test_a_file_of_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Pleural effusion.\n\n  Clear lungs \r\nPleural effusion.", encoding="utf-8")
    assert read_prompts(path) == ("Pleural effusion.", "Clear lungs", "Pleural effusion.")
    path.write_text("one\n")
    with pytest.raises(UserError, match="holds 1 prompt"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompts(path)

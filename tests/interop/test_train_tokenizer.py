"""A trained tokenizer is a CLIP tokenizer: same rules, any text, readable from disk."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.interop.tokenization import encode_prompts, load_tokenizer, save_tokenizer
from medsd_jax.interop.train_tokenizer import train_bert_vocabulary, train_clip_tokenizer

CAPTIONS = [
    "Chest X-ray. Large left pleural effusion.",
    "A photo of a lung xray with a visible pleural effusion",
    "Chest X-ray. No finding.",
] * 3
PHANTOMS = [record.text for record in phantom_records(1000)]


def trained(**settings):
    return train_clip_tokenizer(CAPTIONS, **{"num_merges": 200, **settings})


def test_frequent_words_are_one_token_and_unseen_ones_survive():
    tokenizer = trained()
    assert tokenizer.tokenize("pleural effusion") == ["pleural</w>", "effusion</w>"]
    for text in ("atelectasis", "größer 漢字 — 12 mm"):
        ids = [i for i in encode_prompts(tokenizer, [text])[0] if i < tokenizer.bos_token_id]
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_layout_is_clips():
    tokenizer = trained(max_length=20)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert end == len(tokenizer) - 1 and start == end - 1 and tokenizer.pad_token_id == end
    ids = encode_prompts(tokenizer, ["Chest X-ray.", ""])
    assert ids.shape == (2, 20)
    assert ids[0, 0] == start and ids[0, -1] == end
    np.testing.assert_array_equal(ids[1], [start] + [end] * 19)


def test_fewer_merges_than_asked_for_is_fine_and_more_are_cut():
    few, many = trained(num_merges=5), trained(num_merges=100_000)
    assert len(few) == 512 + 5 + 2
    assert 519 < len(many) < 1000


IN_A_PROCESS = """
import json
from tests.interop.test_train_tokenizer import PHANTOMS
from medsd_jax.interop.train_tokenizer import train_bert_vocabulary, train_clip_tokenizer
tokenizer = train_clip_tokenizer(PHANTOMS, num_merges=600)
vocabulary = train_bert_vocabulary(PHANTOMS, size=120)
print(json.dumps([sorted(tokenizer.get_vocab().items()), vocabulary]))
"""


def test_equal_texts_give_equal_ids_in_every_process():
    """Ties between pairs are frequent here, and the library's hash tables are seeded at random."""
    root = Path(__file__).parents[2]
    learnt = {
        subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS], cwd=root, check=True, capture_output=True
        ).stdout
        for _ in range(4)
    }
    assert len(learnt) == 1
    vocabulary = train_bert_vocabulary(PHANTOMS, size=120)
    assert len(vocabulary) == 120 and {"effusion", "##s", "a"} <= set(vocabulary)


def test_the_same_ids_after_a_round_trip_through_the_old_files(tmp_path):
    tokenizer = trained()
    save_tokenizer(tokenizer, tmp_path)
    expected = encode_prompts(tokenizer, CAPTIONS)
    np.testing.assert_array_equal(encode_prompts(load_tokenizer(tmp_path), CAPTIONS), expected)
    (tmp_path / "tokenizer.json").unlink()  # what transformers before version 5 reads
    assert "chest</w>" in json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    np.testing.assert_array_equal(encode_prompts(load_tokenizer(tmp_path), CAPTIONS), expected)

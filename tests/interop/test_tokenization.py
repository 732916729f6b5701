import hashlib
import json
import logging
import shutil

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.interop.tokenization import encode_prompts, load_tokenizer, save_tokenizer

BOS, EOS, PAD = 49406, 49407, 49407
OLD_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture
def clip_folder(shared_assets, tmp_path):
    """SD 1.5's tokenizer folder as published."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_assets / "clip_bpe" / name, folder / name)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(shared_assets / "sd_configs" / f"sd15_{name}", folder / name)
    return folder


def _pad_with(folder, pad_token):
    path = folder / "special_tokens_map.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": pad_token}))


def test_golden_tokens(clip_folder, shared_assets):
    golden = json.loads((shared_assets / "clip_bpe" / "golden_tokens.json").read_text())
    cases = [case for case in golden["cases"] if len(case["ids_hf"]) <= 75]
    assert len(cases) > 100
    ids = encode_prompts(load_tokenizer(clip_folder), [case["text"] for case in cases])
    assert ids.shape == (len(cases), 77) and ids.dtype == np.int32
    for row, case in zip(ids, cases, strict=True):
        inner = case["ids_hf"]
        assert row.tolist() == [BOS, *inner, EOS, *[PAD] * (75 - len(inner))], case["text"]
    # OpenAI's own code differs where it undoes HTML and where ftfy straightens quotes.
    assert sum(case["ids"] != case["ids_hf"] for case in cases) == 2


def test_golden_tokens_that_do_not_fit(clip_folder, shared_assets):
    golden = json.loads((shared_assets / "clip_bpe" / "golden_tokens.json").read_text())
    cases = [case for case in golden["cases"] if len(case["ids"]) > 75]
    ids = encode_prompts(load_tokenizer(clip_folder), [case["text"] for case in cases])
    assert ids.tolist() == [[BOS, *case["ids_hf"][:75], EOS] for case in cases]


@pytest.mark.parametrize("pad_token, pad_id", [("<|endoftext|>", 49407), ("!", 0)])
def test_the_pad_token_survives(clip_folder, tmp_path, pad_token, pad_id):
    _pad_with(clip_folder, pad_token)
    tokenizer = load_tokenizer(clip_folder)
    before = encode_prompts(tokenizer, ["pleural effusion", ""])
    assert before[0].tolist() == [BOS, 926, 33948, 1490, 9364, EOS, *[pad_id] * 71]
    assert before[1].tolist() == [BOS, EOS, *[pad_id] * 75]
    save_tokenizer(tokenizer, tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert np.array_equal(encode_prompts(again, ["pleural effusion", ""]), before)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / "saved" / name).read_text())["pad_token"] == pad_token


def test_vocabulary_comes_out_as_published(clip_folder, tmp_path):
    save_tokenizer(load_tokenizer(clip_folder), tmp_path / "saved")
    for name in ("vocab.json", "merges.txt"):
        published, saved = ((f / name).read_bytes() for f in (clip_folder, tmp_path / "saved"))
        assert hashlib.sha256(saved).digest() == hashlib.sha256(published).digest(), name


@pytest.mark.parametrize("kept", [("tokenizer.json", "tokenizer_config.json"), OLD_FILES])
@pytest.mark.parametrize("which", ["tokenizer", "exclamation_tokenizer"])
def test_either_set_of_files_is_enough(request, tmp_path, kept, which):
    tokenizer = request.getfixturevalue(which)
    prompts = ["Left lung: 3 cm, Ünklar 肺!", "", "!!"]
    before = encode_prompts(tokenizer, prompts)
    save_tokenizer(tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*OLD_FILES, "tokenizer.json"}
    for path in list(tmp_path.iterdir()):
        if path.name not in kept:
            path.unlink()
    again = load_tokenizer(tmp_path)
    assert np.array_equal(encode_prompts(again, prompts), before)
    assert again.model_max_length == tokenizer.model_max_length


def test_vocabulary_alone_is_enough(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    for path in list(tmp_path.iterdir()):
        if path.name not in ("vocab.json", "merges.txt"):
            path.unlink()
    again = load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="states no model_max_length"):
        encode_prompts(again, ["lung"])
    again.model_max_length = tokenizer.model_max_length
    assert np.array_equal(encode_prompts(again, ["lung"]), encode_prompts(tokenizer, ["lung"]))


def test_added_tokens_survive(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "a")
    grown = load_tokenizer(tmp_path / "a")
    grown.add_tokens(["<effusion>"])
    before = encode_prompts(grown, ["lung <effusion> x"])
    assert len(tokenizer) in before
    save_tokenizer(grown, tmp_path / "b")
    added = json.loads((tmp_path / "b" / "added_tokens.json").read_text())
    assert added == {"<effusion>": len(tokenizer)}
    assert np.array_equal(
        encode_prompts(load_tokenizer(tmp_path / "b"), ["lung <effusion> x"]), before
    )
    for name in ("tokenizer.json",):
        (tmp_path / "b" / name).unlink()
    old = load_tokenizer(tmp_path / "b")
    assert np.array_equal(encode_prompts(old, ["lung <effusion> x"]), before)


def test_saved_files_hold_no_trace_of_use_or_machine(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "a")
    again = load_tokenizer(tmp_path / "a")
    encode_prompts(again, ["lung", "lung " * 20])
    save_tokenizer(again, tmp_path / "b")
    for name in (*OLD_FILES, "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "b" / name).read_text()


def test_a_cut_prompt_is_reported_with_what_was_lost(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        ids = encode_prompts(tokenizer, ["lung", "lung lung lung lung lung effusion"])
    assert ids.shape == (2, 12)
    assert ids[1, -1] == tokenizer.eos_token_id
    (record,) = caplog.records
    assert record.getMessage() == (
        "prompt 1 is longer than 12 tokens; its last 8 were cut: 'effusion'"
    )


def test_many_cut_prompts_do_not_flood_the_log(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        encode_prompts(tokenizer, [f"a b c d e f g h i j k l {i}" for i in range(25)])
    assert len(caplog.records) == 11
    assert caplog.messages[-1] == "15 more prompts are longer than 12 tokens and were cut"


def test_a_repeated_prompt_is_encoded_and_told_once(tokenizer, caplog):
    long = "lung lung lung lung lung effusion"
    with caplog.at_level(logging.WARNING):
        ids = encode_prompts(tokenizer, ["lung", long, "lung", long])
    assert len(caplog.records) == 1 and "prompt 1 is longer" in caplog.text
    np.testing.assert_array_equal(ids[[0, 1]], ids[[2, 3]])


def test_thousands_of_prompts_keep_their_order(tokenizer):
    """More distinct prompts than are encoded at once, each also on its own."""
    prompts = [f"{a} {b}" for a in "abcdefghij" for b in range(150)]
    ids = encode_prompts(tokenizer, prompts)
    for i in (0, 1023, 1024, 1499):
        np.testing.assert_array_equal(ids[i], encode_prompts(tokenizer, [prompts[i]])[0])


def test_a_prompt_that_just_fits_is_not_cut(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        ids = encode_prompts(tokenizer, ["a b c d e f g h i j"])
    assert not caplog.records
    assert len(set(ids[0].tolist())) == 12


def test_no_prompts(tokenizer):
    ids = encode_prompts(tokenizer, [])
    assert ids.shape == (0, 12) and ids.dtype == np.int32


@pytest.mark.parametrize(
    "prompts, why",
    [
        ("lung", "not the one text 'lung'"),
        (["lung", None], "prompt 1 is None"),
        ([3.5], "prompt 0"),
    ],
)
def test_what_is_no_text_is_reported(tokenizer, prompts, why):
    with pytest.raises(UserError, match=why):
        encode_prompts(tokenizer, prompts)


def test_missing_and_damaged_files_are_reported(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer; expected .* found nothing"):
        load_tokenizer(tmp_path / "absent")
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"found .*vocab\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text('{"a": ')
    with pytest.raises(UserError, match="cannot be read") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [-1, 0, 2, 77.5, True, "77", "long", [77], {"a": 77}, "NaN"])
def test_a_length_that_is_none(tokenizer, tmp_path, length):
    _state_length(tokenizer, tmp_path, float("nan") if length == "NaN" else length)
    with pytest.raises(UserError, match=r"model_max_length = .* must be a whole number") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length, meant", [(77.0, 77), (3, 3), (1e30, int(1e30))])
def test_lengths_that_are_read(tokenizer, tmp_path, length, meant):
    _state_length(tokenizer, tmp_path, length)
    assert load_tokenizer(tmp_path).model_max_length == meant


def _state_length(tokenizer, folder, length):
    save_tokenizer(tokenizer, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "[" * 10**5 + "]" * 10**5])
@pytest.mark.parametrize("name", [*OLD_FILES, "tokenizer.json"])
def test_files_of_a_tokenizer_that_hold_something_else(tokenizer, tmp_path, name, text):
    save_tokenizer(tokenizer, tmp_path)
    if name != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"cannot be read|is empty") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_reading_says_nothing(tokenizer, tmp_path, caplog):
    """Its trial of texts is longer than some models' limit, which transformers would warn of."""
    _state_length(tokenizer, tmp_path, 12)
    load_tokenizer(tmp_path)
    assert not caplog.messages


def test_a_vocabulary_without_a_word_for_the_unknown(tmp_path):
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "chest", "x"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer_config = {
        "model_max_length": 16,
        "tokenizer_class": "BertTokenizer",
        "unk_token": "[UNK]",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    try:
        tokenizer = load_tokenizer(tmp_path, "BertTokenizer")
    except UserError as error:
        assert "cuts no texts" in str(error)
    else:  # transformers made room for it
        assert encode_prompts(tokenizer, ["déjà"]).shape == (1, 16)


def test_a_tokenizer_without_a_pad_token(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        tokenizer_config = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**tokenizer_config, "pad_token": None}))
    with pytest.raises(UserError, match="names no pad_token"):
        load_tokenizer(tmp_path)

"""New words: what diffusers makes of our file, what we make of its, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from transformers import CLIPTokenizer

from medsd_jax.cli import model_flags
from medsd_jax.errors import UserError
from medsd_jax.interop import torch_verify
from medsd_jax.interop.diffusers_folder import load_pipeline, save_pipeline
from medsd_jax.interop.learned_embeddings import (
    EMBEDDINGS_FILE,
    add_placeholder_token,
    read_embeddings,
    with_embeddings,
    write_embeddings,
)
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.workflows.models import add_embedding
from medsd_jax.workflows.sample import sample
from medsd_jax.workflows.train.adaptation import make_adaptation
from tests.tiny.pipeline import SIZE, one_torch_thread, tiny_pipeline  # noqa: F401

TABLE = "text_encoder.text_model.embeddings.token_embedding.embedding"
TOKEN, PROMPT = "<cxr>", "a <cxr> b"
LATENTS = np.random.default_rng(2).standard_normal((2, SIZE // 2, SIZE // 2, 4)).astype(np.float32)


def rows_of(count):
    return np.random.default_rng(count).standard_normal((count, 32)).astype(np.float32)


def our_image(model, prompt):
    return sample(
        model, [prompt] * 2, latents=LATENTS, num_steps=4, guidance_scale=3.0, height=SIZE,
        width=SIZE, progress=False,
    ).astype(float)  # fmt: skip


def torch_image(pipeline, prompt):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": SIZE, "width": SIZE}
    return pipeline.sample(prompt, "", LATENTS, **settings)


@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_reads_our_file_and_draws_the_same(tmp_path, count):
    """From the small file, and from the folder with the token baked in."""
    model = with_embeddings(tiny_pipeline(), TOKEN, rows_of(count))
    ours = our_image(model, PROMPT)
    assert np.abs(ours - our_image(model, "a b")).mean() > 2
    write_embeddings(tmp_path, TOKEN, model, count)
    save_pipeline(tiny_pipeline(), tmp_path / "plain")
    save_pipeline(model, tmp_path / "baked")
    plain = torch_verify.TorchPipeline(tmp_path / "plain")
    plain._pipe.load_textual_inversion(str(tmp_path / EMBEDDINGS_FILE))
    for pipeline in (plain, torch_verify.TorchPipeline(tmp_path / "baked")):
        assert np.abs(ours - torch_image(pipeline, PROMPT)).mean() < 0.5
    again = load_pipeline(tmp_path / "baked")
    np.testing.assert_array_equal(our_image(again, PROMPT), ours)


def test_we_read_what_diffusers_example_writes(tmp_path):
    """{token: [k, D]} in safetensors; a single vector may have lost its axis."""
    for name, rows in (("one", rows_of(1)[0]), ("two", rows_of(2))):
        save_file({TOKEN: rows}, tmp_path / f"{name}.safetensors")
        placeholder_token, result = read_embeddings(tmp_path / f"{name}.safetensors")
        assert placeholder_token == TOKEN
        np.testing.assert_array_equal(result, np.atleast_2d(rows))


def test_every_other_row_stays_and_the_word_is_spelled_out():
    before = tiny_pipeline()
    model = add_placeholder_token(before, TOKEN, initializer_token="x", num_vectors=3)
    assert len(before.tokenizer) == 512 and len(model.tokenizer) == 515
    table = model.params[TABLE]
    np.testing.assert_array_equal(table[:512], before.params[TABLE])
    (start,) = before.tokenizer("x", add_special_tokens=False)["input_ids"]
    for row in table[512:]:
        np.testing.assert_array_equal(row, before.params[TABLE][start])
    (ids,) = encode_prompts(model.tokenizer, [PROMPT])
    a, b = (before.tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in "ab")
    assert ids[1:6].tolist() == [a, 512, 513, 514, b]
    np.testing.assert_array_equal(
        encode_prompts(model.tokenizer, ["no new word"]),
        encode_prompts(before.tokenizer, ["no new word"]),
    )


def test_a_second_word_beside_the_first():
    model = with_embeddings(with_embeddings(tiny_pipeline(), TOKEN, rows_of(2)), "<b>", rows_of(1))
    (ids,) = encode_prompts(model.tokenizer, ["<b> <cxr>"])
    assert ids[1:4].tolist() == [514, 512, 513]


@pytest.mark.parametrize(
    "placeholder_token, rows, message",
    [
        ("x</w>", rows_of(1), "exists already"),
        ("<|endoftext|>", rows_of(1), "exists already"),
        (" ", rows_of(1), "must be text"),
        (TOKEN, rows_of(1)[:, :8], r"\[1, 8\]"),
        (TOKEN, rows_of(1)[0], r"\[32\]"),
    ],
)
def test_words_that_cannot_be_added(placeholder_token, rows, message):
    with pytest.raises(UserError, match=message):
        with_embeddings(tiny_pipeline(), placeholder_token, rows)


def test_word_that_is_there_and_start_of_several_tokens():
    model = add_placeholder_token(tiny_pipeline(), TOKEN, initializer_token="x")
    with pytest.raises(UserError, match="placeholder token '<cxr>' exists already"):
        add_placeholder_token(model, TOKEN, initializer_token="x")
    with pytest.raises(UserError, match="'xray', which is 4 tokens"):
        add_placeholder_token(model, "<other>", initializer_token="xray")


@pytest.mark.torch
@pytest.mark.parametrize("role", ["emb_params", "*"])
def test_a_file_of_a1111_is_called_by_its_name(tmp_path, caplog, role):
    """diffusers takes the token as an argument: its image of all its parts is ours."""
    path = tmp_path / "MyNegative.safetensors"
    save_file({role: rows_of(3)}, path)
    with caplog.at_level("INFO"):
        model = add_embedding(tiny_pipeline(), path)
    assert "the placeholder token 'MyNegative' of 3 vectors" in caplog.text
    save_pipeline(tiny_pipeline(), tmp_path / "plain")
    plain = torch_verify.TorchPipeline(tmp_path / "plain")
    plain._pipe.load_textual_inversion(str(path), token="MyNegative")
    # diffusers finds no capitals in lower-cased text, so that the tokens are spelled out for it.
    theirs = torch_image(plain, "a MyNegative MyNegative_1 MyNegative_2 b")
    for prompt in ("a MyNegative b", "a mynegative b"):
        assert np.abs(our_image(model, prompt) - theirs).mean() < 0.5
    assert np.abs(theirs - our_image(tiny_pipeline(), "a MyNegative b")).mean() > 2


def test_the_word_may_be_given(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"emb_params": rows_of(1)}, path)
    model = add_embedding(tiny_pipeline(), path, "<first>")
    model = add_embedding(model, tmp_path, "<second>")  # a folder with one file
    (ids,) = encode_prompts(model.tokenizer, ["<second> <first>"])
    assert ids[1:3].tolist() == [513, 512]
    with pytest.raises(UserError, match=r"'<first>' exists already .*FILE:TOKEN"):
        add_embedding(model, path, "<first>")


@pytest.mark.torch
@pytest.mark.parametrize("spare, count", [(5, 2), (1, 3), (2, 2)])
def test_a_table_that_is_larger_than_the_tokenizer(tmp_path, spare, count):
    """The token takes the spare rows first; diffusers gives its tokens the same numbers."""
    small = tiny_pipeline()
    table = np.concatenate([small.params[TABLE], np.full((spare, 32), 7, np.float32)])
    larger = dataclasses.replace(
        small,
        params={**small.params, TABLE: table},
        text_encoder=dataclasses.replace(small.text_encoder, vocab_size=len(table)),
    )
    model = with_embeddings(larger, TOKEN, rows_of(count))
    assert model.params[TABLE].shape == (512 + max(spare, count), 32)
    assert model.text_encoder.vocab_size == len(model.params[TABLE])
    np.testing.assert_array_equal(model.params[TABLE][512 : 512 + count], rows_of(count))
    np.testing.assert_array_equal(model.params[TABLE][512 + count :], table[512 + count :])
    write_embeddings(tmp_path, TOKEN, model, count)
    np.testing.assert_array_equal(read_embeddings(tmp_path)[1], rows_of(count))
    save_pipeline(larger, tmp_path / "plain")
    pipeline = torch_verify.TorchPipeline(tmp_path / "plain")
    pipeline._pipe.load_textual_inversion(str(tmp_path / EMBEDDINGS_FILE))
    ours = our_image(model, PROMPT)
    assert np.abs(ours - torch_image(pipeline, PROMPT)).mean() < 0.5
    save_pipeline(model, tmp_path / "baked")
    np.testing.assert_array_equal(our_image(load_pipeline(tmp_path / "baked"), PROMPT), ours)


def test_training_a_word_of_a_larger_table():
    small = tiny_pipeline()
    table = np.concatenate([small.params[TABLE], np.zeros((4, 32), np.float32)])
    larger = dataclasses.replace(
        small,
        params={**small.params, TABLE: table},
        text_encoder=dataclasses.replace(small.text_encoder, vocab_size=516),
    )
    config = ConfigDict({"name": "textual_inversion", "placeholder_token": TOKEN, "num_vectors": 2})
    model = add_placeholder_token(larger, TOKEN, initializer_token="x", num_vectors=2)
    adaptation = make_adaptation(ConfigDict({"adaptation": config}), model)
    ((_, rows),) = adaptation.init(model.params, jax.random.key(0)).items()
    np.testing.assert_array_equal(rows, model.params[TABLE][512:514])


def test_words_that_begin_alike_are_reported_apart():
    model = with_embeddings(tiny_pipeline(), "bad", rows_of(2))
    model = with_embeddings(model, "bad-hands", rows_of(3))
    (ids,) = encode_prompts(model.tokenizer, ["bad-hands bad"])
    assert ids[1:6].tolist() == [514, 515, 516, 512, 513]
    with pytest.raises(
        UserError, match=r"'bad_2' cannot be told from .*'bad' would be read as another"
    ):
        with_embeddings(model, "bad_2", rows_of(1))
    model = with_embeddings(tiny_pipeline(), "bad_1", rows_of(1))
    with pytest.raises(UserError, match="'bad' cannot be told"):
        with_embeddings(model, "bad", rows_of(1))


def test_words_that_differ_in_capitals_alone():
    """CLIP's tokenizer lower-cases all text, added tokens too."""
    model = with_embeddings(tiny_pipeline(), "Bad", rows_of(1))
    with pytest.raises(UserError, match="'bad' cannot be told from"):
        with_embeddings(model, "bad", rows_of(1))
    model = with_embeddings(tiny_pipeline(), "<Bad>", rows_of(2))
    (ids,) = encode_prompts(model.tokenizer, ["<BAD> <bad> <|ENDOFTEXT|>"])
    assert ids[1:5].tolist() == [512, 513, 512, 513]
    (plain,) = encode_prompts(tiny_pipeline().tokenizer, ["<|ENDOFTEXT|>"])
    assert ids[5:9].tolist() == plain[1:5].tolist()


def test_a_word_that_texts_hold_is_warned_of(caplog):
    with_embeddings(tiny_pipeline(), TOKEN, rows_of(1))
    assert not caplog.messages
    vocabulary = {
        t if i != 300 else "rib</w>": i for t, i in tiny_pipeline().tokenizer.get_vocab().items()
    }
    merges = [("i", "b</w>"), ("r", "ib</w>")]
    vocabulary = {t if i != 301 else "ib</w>": i for t, i in vocabulary.items()}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    old = dataclasses.replace(tiny_pipeline(), tokenizer=tokenizer)
    new = with_embeddings(old, "Rib", rows_of(1))
    assert "'Rib' is an old one, too" in caplog.text
    ids = encode_prompts(new.tokenizer, ["rib", "describe"])
    assert (encode_prompts(old.tokenizer, ["rib"])[0, 1], ids[0, 1]) == (300, 512)
    assert 512 in ids[1]


def test_a_word_longer_than_a_prompt():
    with pytest.raises(UserError, match="1000000000 vectors, '<cxr>', does not fit"):
        add_placeholder_token(tiny_pipeline(), TOKEN, initializer_token="x", num_vectors=10**9)
    with pytest.raises(UserError, match="room for 14 tokens"):
        with_embeddings(tiny_pipeline(), TOKEN, rows_of(15))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("there.safetensors", ("there.safetensors", None)),
        ("there.safetensors:<x>", ("there.safetensors", "<x>")),
        ("a:b.safetensors", ("a:b.safetensors", None)),
        ("a:b.safetensors:w", ("a:b.safetensors", "w")),
    ],
)
def test_the_flag_names_a_file_and_a_word(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("there.safetensors", "a:b.safetensors"):
        (tmp_path / name).touch()
    path, placeholder_token = model_flags._parse_embedding(text)
    assert (str(path), placeholder_token) == expected
    with pytest.raises(UserError, match="there is no token"):
        model_flags._parse_embedding("there.safetensors: ")


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"clip_l": rows_of(1), "clip_g": rows_of(1)}, "of SDXL"),
        ({"<x>": np.float32(1)}, r"is float32 \[\]"),
        ({"<x>": rows_of(2)[None]}, r"is float32 \[1, 2, 32\]"),
        ({"<x>": np.ones((1, 32), np.int32)}, "is int32"),
        ({"<x>": np.full((1, 32), np.nan, np.float32)}, "not finite"),
    ],
)
def test_tensors_that_are_no_embedding(tmp_path, tensors, message):
    save_file({k: np.asarray(x) for k, x in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        read_embeddings(tmp_path / "x.safetensors")


def test_files_that_hold_something_else(tmp_path):
    save_file({"a": rows_of(1), "b": rows_of(1)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="2 tensors"):
        read_embeddings(tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="nowhere"):
        read_embeddings(tmp_path / "nowhere.safetensors")

"""New words: what diffusers makes of our file, what we make of its, and what is refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from medsd_jax import api
from medsd_jax.errors import UserError
from medsd_jax.interop import torch_verify
from medsd_jax.interop.learned_embeddings import (
    EMBEDDINGS_FILE,
    add_word,
    read_embeddings,
    with_embeddings,
    write_embeddings,
)
from medsd_jax.interop.pipeline_dir import load_pipeline, save_pipeline
from medsd_jax.interop.tokenization import encode_prompts
from tests.tiny_pipeline import SIDE, one_torch_thread, tiny_pipeline  # noqa: F401

TABLE = "text_encoder.text_model.embeddings.token_embedding.embedding"
WORD, PROMPT = "<cxr>", "a <cxr> b"
LATENTS = np.random.default_rng(2).standard_normal((2, SIDE // 2, SIDE // 2, 4)).astype(np.float32)


def rows_of(count):
    return np.random.default_rng(count).standard_normal((count, 32)).astype(np.float32)


def our_picture(model, prompt):
    return api.sample(
        model, [prompt] * 2, latents=LATENTS, num_steps=4, guidance_scale=3.0, height=SIDE,
        width=SIDE, progress=False,
    ).astype(float)  # fmt: skip


def torch_picture(pipeline, prompt):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": SIDE, "width": SIDE}
    return pipeline.sample(prompt, "", LATENTS, **settings)


@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_reads_our_file_and_draws_the_same(tmp_path, count):
    """From the small file, and from the folder with the word baked in."""
    model = with_embeddings(tiny_pipeline(), WORD, rows_of(count))
    ours = our_picture(model, PROMPT)
    assert np.abs(ours - our_picture(model, "a b")).mean() > 2
    write_embeddings(tmp_path, WORD, model.params, count)
    save_pipeline(tiny_pipeline(), tmp_path / "plain")
    save_pipeline(model, tmp_path / "baked")
    plain = torch_verify.TorchPipeline(tmp_path / "plain")
    plain._pipe.load_textual_inversion(str(tmp_path / EMBEDDINGS_FILE))
    for pipeline in (plain, torch_verify.TorchPipeline(tmp_path / "baked")):
        assert np.abs(ours - torch_picture(pipeline, PROMPT)).mean() < 0.5
    again = load_pipeline(tmp_path / "baked")
    np.testing.assert_array_equal(our_picture(again, PROMPT), ours)


def test_we_read_what_diffusers_example_writes(tmp_path):
    """{token: [k, D]} in safetensors; a single vector may have lost its axis."""
    for name, rows in (("one", rows_of(1)[0]), ("two", rows_of(2))):
        save_file({WORD: rows}, tmp_path / f"{name}.safetensors")
        word, found = read_embeddings(tmp_path / f"{name}.safetensors")
        assert word == WORD
        np.testing.assert_array_equal(found, np.atleast_2d(rows))


def test_every_other_row_stays_and_the_word_is_spelled_out():
    before = tiny_pipeline()
    model = add_word(before, WORD, like="x", num_vectors=3)
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
    model = with_embeddings(with_embeddings(tiny_pipeline(), WORD, rows_of(2)), "<b>", rows_of(1))
    (ids,) = encode_prompts(model.tokenizer, ["<b> <cxr>"])
    assert ids[1:4].tolist() == [514, 512, 513]


@pytest.mark.parametrize(
    "word, rows, message",
    [
        ("x</w>", rows_of(1), "exists already"),
        ("<|endoftext|>", rows_of(1), "exists already"),
        (" ", rows_of(1), "must be text"),
        (WORD, rows_of(1)[:, :8], r"\[1, 8\]"),
        (WORD, rows_of(1)[0], r"\[32\]"),
    ],
)
def test_words_that_cannot_be_added(word, rows, message):
    with pytest.raises(UserError, match=message):
        with_embeddings(tiny_pipeline(), word, rows)


def test_word_that_is_there_and_start_of_several_tokens():
    model = add_word(tiny_pipeline(), WORD, like="x")
    with pytest.raises(UserError, match="placeholder token '<cxr>' exists already"):
        add_word(model, WORD, like="x")
    with pytest.raises(UserError, match="'xray', which is 4 tokens"):
        add_word(model, "<other>", like="xray")


def test_files_that_hold_something_else(tmp_path):
    save_file({"a": rows_of(1), "b": rows_of(1)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="2 tensors"):
        read_embeddings(tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="nowhere"):
        read_embeddings(tmp_path / "nowhere.safetensors")

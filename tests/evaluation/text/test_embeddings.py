"""Pooled embeddings equal those made from transformers' hidden states by hand."""

import dataclasses

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.evaluation.text.embeddings import check_pooling, embed_texts, parse_pooling
from medsd_jax.interop.any_text_encoder import load_text_encoder
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.bert_config import TextProjectionConfig
from medsd_jax.models.params import with_prefix
from medsd_jax.workflows.models import save
from tests.tiny.bert import write_bert
from tests.tiny.pipeline import one_torch_thread, tiny_pipeline  # noqa: F401

TEXTS = ["Large left pleural effusion.", "No finding.", "Large left pleural effusion.", ""]
POOLINGS = ["last", "mean", "cls", "kth:1", "kth:2", "kth:3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    save(tiny_pipeline(), folder / "run" / "model")
    write_bert(folder / "bert")
    return folder


def states_of(encoder, folder, ids, mask):
    """transformers' hidden states, the last one first, [B, S, D] each."""
    import torch
    from transformers import BertModel, CLIPTextModel

    if type(encoder.config).__name__ == "BertTextConfig":
        model = BertModel.from_pretrained(folder / "bert")
        kwargs = {} if mask is None else {"attention_mask": torch.from_numpy(mask).long()}
    else:
        model = CLIPTextModel.from_pretrained(folder / "run" / "model" / "text_encoder")
        kwargs = {}
    with torch.no_grad():
        out = model(torch.from_numpy(ids).long(), output_hidden_states=True, **kwargs)
        states = list(out.hidden_states[::-1])
        if "attention_mask" not in kwargs and type(model).__name__ == "CLIPTextModel":
            norm = getattr(model, "text_model", model).final_layer_norm
            states = [norm(x) for x in states]
    np.testing.assert_allclose(states[0], out.last_hidden_state, atol=1e-5)
    return [x.numpy() for x in states]


@pytest.mark.torch
@pytest.mark.parametrize("masked", [False, True], ids=["no-mask", "mask"])
@pytest.mark.parametrize("name", ["bert", "run"])
def test_poolings(folders, name, masked):
    encoder = load_text_encoder(folders / name, max_length=14)
    length = 14 if name == "bert" else 16
    ids = encode_prompts(encoder.tokenizer, TEXTS)
    assert ids.shape[1] == length
    end_id = encoder.tokenizer.convert_tokens_to_ids("[SEP]" if name == "bert" else "<|endoftext|>")
    ends = [row.tolist().index(end_id) for row in ids]
    assert ends[1] < length - 1  # there is padding
    mask = np.array([[s <= end for s in range(length)] for end in ends])
    states = states_of(encoder, folders, ids, mask if masked else None)
    for text in POOLINGS:
        expected = []
        for row, end in enumerate(ends):
            k = int(text[4:]) - 1 if text.startswith("kth") else 0
            state = states[k][row]
            if text == "last":
                expected.append(state.mean(axis=0))
            elif text == "cls":
                expected.append(state[0 if name == "bert" else end])
            else:
                expected.append(state[: end + 1].mean(axis=0))
        result = embed_texts(encoder, TEXTS, parse_pooling(text), attention_mask=masked)
        # Float32 sums in another order: see tests/models/test_bert.py.
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max(), text
    assert np.array_equal(result[0], result[2])


def test_a_mask_takes_the_length_out_of_a_bert(folders):
    short, long = (load_text_encoder(folders / "bert", max_length=n) for n in (12, 30))
    one, two = (
        [embed_texts(e, TEXTS[:2], parse_pooling("mean"), attention_mask=m) for m in (True, False)]
        for e in (short, long)
    )
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    assert np.abs(one[1] - two[1]).max() > 1e-3


def test_a_projection_is_read_behind_itself(folders):
    bert = load_text_encoder(folders / "bert", max_length=14)
    shape = TextProjectionConfig(in_features=32, out_features=5)
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(32, 5)).astype(np.float32), np.float32([1, 2, 3, 4, 5])
    projected = bert._replace(
        config=dataclasses.replace(bert.config, projection=shape),
        params=bert.params | with_prefix({"0.kernel": kernel, "0.bias": bias}, "projection"),
    )
    for text in ("mean", "last", "cls"):
        plain, behind = (embed_texts(e, TEXTS, parse_pooling(text)) for e in (bert, projected))
        np.testing.assert_allclose(behind, plain @ kernel + bias, atol=1e-4)
    plain, inside = (embed_texts(e, TEXTS, parse_pooling("kth:1")) for e in (bert, projected))
    np.testing.assert_allclose(inside, plain, atol=1e-6)


@pytest.mark.parametrize("text", ["max", "kth", "kth:0", "kth:-1", "kth:x", "mean:1", ""])
def test_unknown_poolings(text):
    with pytest.raises(UserError, match="is none of last, mean, cls, kth:N"):
        parse_pooling(text)


def test_a_state_beyond_the_layers(folders):
    encoder = load_text_encoder(folders / "bert", max_length=14)
    check_pooling(encoder, parse_pooling("kth:3"), "bert")
    with pytest.raises(UserError, match="kth:4: bert has 3 hidden states"):
        check_pooling(encoder, parse_pooling("kth:4"), "bert")


def test_numbers_that_are_not_finite_are_reported(folders):
    """Of one token, which one text holds."""
    encoder = load_text_encoder(folders / "run", max_length=14)
    (token,) = encoder.tokenizer("z", add_special_tokens=False)["input_ids"]
    name = "text_model.embeddings.token_embedding.embedding"
    table = np.array(encoder.params[name])
    table[token, 0] = np.nan
    broken = encoder._replace(params=encoder.params | {name: table})
    with pytest.raises(UserError, match=r"not finite .* for 1 of 2 texts, such as 'z'"):
        embed_texts(broken, ["a", "z", "a"], parse_pooling("mean"))
    assert np.isfinite(embed_texts(broken, ["a", "b"], parse_pooling("mean"))).all()

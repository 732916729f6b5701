"""Folders of BERTs: what is read, what is left out, what is refused."""

import json
import logging
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medsd_jax.errors import UserError
from medsd_jax.interop.any_text_encoder import load_text_encoder
from medsd_jax.interop.bert_folder import load_bert
from medsd_jax.interop.tokenization import encode_prompts, load_tokenizer, save_tokenizer
from medsd_jax.models.params import abstract, bind, component
from medsd_jax.models.text_encoder import text_encoder_module
from tests.tiny.bert import CONFIG, VOCABULARY, bert_params, write_bert

TEXT = "Chest x-ray. Large left pleural effusion."


@pytest.fixture
def folder(tmp_path):
    return write_bert(tmp_path / "bert")


def rewrite(folder, change):
    """Replaces the stored tensors by ``change(tensors)``."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_what_is_written_is_read(folder, same_bits):
    bert = load_bert(folder)
    assert bert.config == CONFIG
    same_bits(bert.params, bert_params())


def test_prefix_heads_and_old_names(folder, same_bits, caplog):
    """What a masked-language model of 2019 holds, converted from TensorFlow."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def as_published(tensors):
        renamed = {}
        for name, x in tensors.items():
            for new, before in old.items():
                name = name.replace(new, before)
            renamed[f"bert.{name}"] = x
        extra = {"bert.embeddings.position_ids": np.arange(40)[None]}
        heads = {
            "cls.predictions.bias": np.zeros(3, np.float32),
            "cls.predictions.transform.LayerNorm.gamma": np.zeros(3, np.float32),
            "classifier.weight": np.zeros((2, 32), np.float32),
        }
        return renamed | extra | heads

    rewrite(folder, as_published)
    with caplog.at_level(logging.INFO, "medsd_jax"):
        bert = load_bert(folder)
    same_bits(bert.params, bert_params())
    (message,) = caplog.messages
    assert "3 weights of pre-training's heads (classifier, cls)" in message


def test_a_model_without_pooler(folder, caplog):
    rewrite(folder, lambda x: {k: v for k, v in x.items() if not k.startswith("pooler.")})
    with caplog.at_level(logging.INFO, "medsd_jax"):
        bert = load_bert(folder)
    assert not bert.params["pooler.dense.kernel"].any()
    assert "no pooler" in caplog.text


def test_everything_that_does_not_fit_is_one_error(folder):
    def damaged(tensors):
        del tensors["encoder.layer.1.output.dense.bias"]
        tensors["embeddings.LayerNorm.weight"] = np.zeros(7, np.float32)
        return tensors | {"encoder.layer.2.output.dense.bias": np.zeros(32, np.float32)}

    rewrite(folder, damaged)
    with pytest.raises(UserError) as error:
        load_bert(folder)
    message = str(error.value)
    assert "1 missing: encoder.layer.1.output.dense.bias [32]" in message
    assert "1 not expected: encoder.layer.2.output.dense.bias [32]" in message
    assert "1 of the wrong shape: embeddings.LayerNorm.weight [7] instead of [32]" in message
    assert "\n" not in message


def test_half_a_pooler_is_an_error(folder):
    rewrite(folder, lambda x: {k: v for k, v in x.items() if k != "pooler.dense.bias"})
    with pytest.raises(UserError, match=r"1 missing: pooler\.dense\.bias"):
        load_bert(folder)


def test_a_pickle_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_bert(folder)


def test_roberta_is_refused_by_name(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "roberta"}))
    with pytest.raises(UserError, match=r"'roberta' is not supported; only 'bert' is \(RoBERTa"):
        load_bert(folder)


@pytest.mark.parametrize(
    ("lost", "message"),
    [("config.json", "no config.json"), ("vocab.txt", r"expected vocab.txt \(or tokenizer.json\)")],
)
def test_missing_files(folder, lost, message):
    (folder / lost).unlink()
    with pytest.raises(UserError, match=message):
        load_bert(folder)


def test_other_things_in_its_place(folder, tiny_folder, tmp_path):
    with pytest.raises(UserError, match="is a Stable Diffusion model and no BERT"):
        load_bert(tiny_folder)
    with pytest.raises(UserError, match=r"is no folder; give one with config\.json"):
        load_bert(folder / "vocab.txt")
    with pytest.raises(UserError, match="or a hub id org/name"):
        load_bert(tmp_path / "absent")


def test_tokenizer_pads_cuts_and_survives(folder, tmp_path):
    tokenizer = load_bert(folder).tokenizer
    tokenizer.model_max_length = 12
    ids = encode_prompts(tokenizer, [TEXT, ""])
    words = "chest x - ray . large left pleural effusion .".split()
    inside = [VOCABULARY.index(word) for word in words]
    assert ids.tolist() == [[2, *inside, 3], [2, 3, *[0] * 10]]
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_text().split() == VOCABULARY
    again = load_tokenizer(tmp_path / "saved", "BertTokenizer")
    assert again.model_max_length == 12
    assert np.array_equal(encode_prompts(again, [TEXT, ""]), ids)


@pytest.mark.parametrize("kept", ["vocab.txt", "tokenizer.json"])
def test_case_survives_in_either_set_of_files(tmp_path, kept):
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Left", "left"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=4)
    save_tokenizer(tokenizer, tmp_path)
    for name in {"vocab.txt", "tokenizer.json"} - {kept}:
        (tmp_path / name).unlink()
    again = load_tokenizer(tmp_path, "BertTokenizer")
    assert encode_prompts(again, ["Left left"]).tolist() == [[2, 5, 6, 3]]


def test_a_cased_vocabulary_that_is_lowered_is_warned_of(folder, caplog):
    words = [f"Word{number}" for number in range(200)]
    with (folder / "vocab.txt").open("a") as file:
        file.write("\n".join(words) + "\n")
    with pytest.raises(UserError, match="has 238 tokens but the text encoder only 38"):
        load_bert(folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 238}))
    table = "embeddings.word_embeddings.weight"
    rewrite(folder, lambda x: x | {table: np.ones((238, x[table].shape[1]), np.float32)})
    load_bert(folder)
    assert "200 words with capitals" in caplog.text
    caplog.clear()
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    load_bert(folder)
    assert not caplog.messages


def test_real_vocabulary(shared_assets, tmp_path):
    source = shared_assets / "bert_vocab" / "vocab.txt"
    if not source.is_file():
        pytest.skip(f"no real vocabulary at {source}")
    shutil.copy(source, tmp_path / "vocab.txt")
    tokenizer = load_tokenizer(tmp_path, "BertTokenizer")
    tokenizer.model_max_length = 10
    ids = encode_prompts(tokenizer, ["Pleural effusion."])
    assert ids.tolist() == [[101, 20228, 11236, 2389, 1041, 4246, 14499, 1012, 102, 0]]
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == source.read_bytes()


@pytest.mark.torch
def test_transformers_folder_gives_the_same_hidden_state(tmp_path, caplog):
    """What save_pretrained of a masked-language model writes, heads, prefix and all."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    torch.manual_seed(0)
    values = CONFIG.to_dict()
    theirs = BertForMaskedLM(BertConfig(**values)).eval()
    theirs.save_pretrained(tmp_path)
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    BertTokenizer(vocab=vocabulary, model_max_length=20).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "medsd_jax"):
        bert = load_bert(tmp_path)
    assert "heads (cls)" in caplog.text and "no pooler" in caplog.text
    ids = encode_prompts(bert.tokenizer, [TEXT, "No finding."])
    graph, _ = abstract(text_encoder_module(bert.config))
    ours = bind(graph, jax.tree.map(jnp.asarray, bert.params))(jnp.asarray(ids))
    with torch.inference_mode():
        expected = theirs.bert(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    # Float32 sums in another order: see tests/models/test_bert.py.
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture
def hub(tmp_path, monkeypatch, folder):
    """A hub that serves the folder, with a pickle beside the weights."""
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"no")
    fetched = []

    class Api:
        def model_info(self, repo_id, **_):
            files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
            siblings = [{"rfilename": path.as_posix()} for path in files]
            return huggingface_hub.ModelInfo(id=repo_id, siblings=siblings)

    def snapshot_download(repo_id, *, local_files_only=False, allow_patterns=None):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        (tmp_path / "got").mkdir()
        for name in allow_patterns:
            shutil.copy(folder / name, tmp_path / "got" / name)
        fetched.extend(allow_patterns)
        return str(tmp_path / "got")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


def test_hub_id_fetches_what_is_needed(hub, same_bits):
    same_bits(load_bert("org/radbert").params, bert_params())
    assert sorted(hub) == ["config.json", "model.safetensors", "vocab.txt"]


def test_hub_id_with_pickles_alone_fetches_nothing(hub, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="org/radbert: only pickled weights"):
        load_bert("org/radbert")
    assert not hub


def test_hub_id_offline(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        load_bert("org/radbert")


def test_any_text_encoder_by_hub_id(hub, monkeypatch, tiny_folder, tiny_model, same_bits):
    """A BERT's repository, and one of Stable Diffusion that is cached: each by what it holds."""
    assert load_text_encoder("org/radbert", max_length=9).tokenizer.model_max_length == 9
    served = huggingface_hub.snapshot_download

    def snapshot_download(repo_id, **kwargs):
        return str(tiny_folder) if repo_id == "org/sd" else served(repo_id, **kwargs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    encoder = load_text_encoder("org/sd", max_length=9)
    assert encoder.config == tiny_model.text_encoder
    assert encoder.tokenizer.model_max_length == tiny_model.tokenizer.model_max_length
    same_bits(encoder.params, component(tiny_model.params, "text_encoder"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10**7, r"num_hidden_layers = 10000000 is not supported \(at most"),
        ("hidden_size", 4 * 10**6, r"of the wrong shape: .*instead of \[4000000"),
        ("vocab_size", 10**7, r"instead of \[10000000, 32\]"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps = nan is not supported"),
    ],
)
def test_an_absurd_size_asks_for_no_memory(folder, key, value, message):
    """Without a pooler, in whose place zeros of the width's square are put."""
    rewrite(folder, lambda x: {k: v for k, v in x.items() if not k.startswith("pooler.")})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=message):
        load_bert(folder)

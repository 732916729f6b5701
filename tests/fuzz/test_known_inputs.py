"""Inputs that once ended in a traceback, each by itself: read, or refused in one line."""

import json
import struct
import zlib

import numpy as np
import pytest
from safetensors.numpy import save

from medsd_jax.config import training_config
from medsd_jax.config.recipes import load_config
from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.sources import nih14
from medsd_jax.diffusion.config import ScheduleConfig
from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.images.tables import read_table
from medsd_jax.interop.diffusers_folder import save_pipeline
from medsd_jax.interop.lora_files import read_lora
from medsd_jax.interop.tokenization import load_tokenizer
from medsd_jax.models.config import UNetConfig
from medsd_jax.studies.chambon2022 import run
from medsd_jax.studies.chambon2022.experiments import Study
from medsd_jax.training.best import KeepBest
from medsd_jax.workflows.membership import config_of_run
from medsd_jax.workflows.sample_folder import SampleFolder
from tests.fuzz.model_files import LAYER
from tests.fuzz.mutations import encoded
from tests.tiny.pipeline import tiny_pipeline

DEEP = b"[" * 100_000


def _bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = zlib.compress(b"\0" * 30_001)  # Pillow goes by the header
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_bomb_in_an_evaluation_set_is_left_out(tmp_path):
    (tmp_path / "bomb.png").write_bytes(_bomb())
    (tmp_path / "whole.png").write_bytes(encoded())
    result = open_images(tmp_path)
    assert len(result) == 1 and len(result.unreadable) == 1


SAMPLE = '{"file": "a.png", "prompt": "x", "row": %s}\n'


@pytest.mark.parametrize(
    "content",
    [
        b'{"file": "a.png", "prompt": "\xff"}\n',
        b'{"file": ' + DEEP,
        *((SAMPLE % row).encode() for row in ("null", '"text"', "3", "[1]")),
        b'{"file": "a\\u0000.png"}\n',
        b'{"file": "\\ud800.png"}\n',
        b"null\n",
    ],
)
def test_lists_of_samples(tmp_path, content):
    (tmp_path / "samples.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"samples\.jsonl line 1"):
        read_table(tmp_path / "samples.jsonl")


@pytest.mark.parametrize("cell", ["{1: 1}", "{" + "-" * 4000 + "1}", "{'a': " + "(" * 300, "{'a'}"])
def test_labels_of_a_table(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f'path,labels\na.png,"{cell}"\n')
    try:
        (row,) = read_table(tmp_path / "t.csv")
    except UserError as error:
        assert "labels" in str(error)
    else:
        assert all(isinstance(name, str) for name in row.labels)


@pytest.mark.parametrize("age", ["²", "٣", "9" * 5000, "-5", "1e3"])
def test_ages_that_are_none(tmp_path, age):
    (tmp_path / "t.csv").write_text(f"path,Age\na.png,{age}\n")
    (row,) = read_table(tmp_path / "t.csv")
    assert "age" not in row.labels or 0 <= row.labels["age"] < 200
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(encoded())
    columns = "Image Index,Finding Labels,Patient ID,Patient Age,View Position"
    (tmp_path / "labels.csv").write_text(f"{columns}\na.png,Mass,1,{age},PA\n")
    (record,) = nih14.load(tmp_path).records
    assert "age" not in record.labels or 0 <= record.labels["age"] < 200


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"[1]\n", DEEP + b"\n", b"{}\n", None])
def test_samples_that_were_begun(tmp_path, content):
    entries = [{"prompt": "x", "seed": 0}]
    path = tmp_path / "samples.jsonl"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(UserError, match=str(tmp_path)):
        SampleFolder(tmp_path, "files", entries)


def test_an_id_that_no_file_name_holds(tmp_path):
    entries = [{"prompt": "x", "seed": 0, "row": {"id": "a" * 300}}]
    with pytest.raises(UserError, match="has 300 characters, too many for the name of a file"):
        SampleFolder(tmp_path, "roentgen", entries)


def test_a_network_without_blocks():
    empty = {"block_out_channels": [], "down_block_types": [], "up_block_types": []}
    with pytest.raises(UserError, match="block_out_channels"):
        UNetConfig.from_dict({**tiny_pipeline().unet.to_dict(), **empty})


@pytest.mark.parametrize("name", [["DDIMScheduler"], {}, None, 3])
def test_a_scheduler_without_a_name(name):
    scheduler = {**tiny_pipeline().scheduler, "_class_name": name}
    try:
        assert ScheduleConfig.from_dict(scheduler, "scheduler_config.json")
    except UserError as error:
        assert "_class_name" in str(error)


@pytest.mark.parametrize("length", [-1, "long", [], None, True])
def test_a_tokenizer_without_a_length(tmp_path, length):
    save_pipeline(tiny_pipeline(), tmp_path / "m")
    path = tmp_path / "m/tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))
    try:
        assert load_tokenizer(tmp_path / "m/tokenizer").model_max_length > 2
    except UserError as error:
        assert "model_max_length" in str(error)


PATTERNS = (
    "{", "[]", "5", '"x"', '{"unet.alpha_pattern": [1]}', '{"unet.alpha_pattern": {"(": 1}}',
    '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": [1]}', '{"unet.alpha_pattern": {"to_q": {}}}',
    "[" * 100_000,
)  # fmt: skip


@pytest.mark.parametrize("header", PATTERNS)
def test_headers_of_a_lora(tmp_path, header):
    down, up = np.zeros((2, 32), np.float32), np.zeros((32, 2), np.float32)
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    metadata = {"lora_adapter_metadata": header}
    (tmp_path / "l.safetensors").write_bytes(save(tensors, metadata))
    with pytest.raises(UserError, match=r"l\.safetensors"):
        read_lora(tmp_path / "l.safetensors", tiny_pipeline().params)


@pytest.mark.parametrize(("part", "shape"), [("alpha", (3,)), ("lora_A.weight", ()), ("x", (1,))])
def test_shapes_of_a_lora(tmp_path, part, shape):
    down, up = np.zeros((2, 32), np.float32), np.zeros((32, 2), np.float32)
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    tensors[f"{LAYER}.{part}"] = np.ones(shape, np.float32)
    (tmp_path / "l.safetensors").write_bytes(save(tensors))
    with pytest.raises(UserError, match=r"l\.safetensors"):
        read_lora(tmp_path / "l.safetensors", tiny_pipeline().params)


def test_a_link_to_itself_among_the_images(tmp_path):
    (tmp_path / "f").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "f" / name).write_bytes(encoded())
    (tmp_path / "f/loop.png").symlink_to("loop.png")
    (tmp_path / "f/metadata.csv").write_text(
        "file_name,text,patient_id,split\na.png,x,1,train\nb.png,y,2,validation\n"
    )
    result = open_dataset("folder", tmp_path / "f", cache_dir=tmp_path / "c", progress=False)
    assert result.info.num_images == {"train": 1, "validation": 1}


@pytest.mark.parametrize(
    "content", [b"[1]", b"{", DEEP, b"\xff", b'{"task": "diffusion"}', b"null"]
)
def test_the_config_of_a_run(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        config_of_run(tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"{", DEEP, b"\xff", b"null", b"{}"])
def test_the_settings_of_a_comparison(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match="name another output"):
        run.keep_settings(Study("phantom", tmp_path, train_steps=3))


@pytest.mark.parametrize(
    "text", ["x = undefined\n", "def get_config():\n    return 1 / 0\n", "raise ValueError('no')\n"]
)
def test_a_recipe_that_fails(tmp_path, text):
    (tmp_path / "r.py").write_text(text)
    with pytest.raises(UserError, match=r"r\.py"):
        load_config(tmp_path / "r.py")


def test_a_key_that_no_config_can_have(tmp_path):
    config = training_config()
    config.model.path = "m"
    whole = json.loads(config.to_json())
    whole["data"]["__class__"] = 1
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="is no config of a run"):
        config_of_run(tmp_path)


@pytest.mark.parametrize("value", [10**400, "x", None, [1]])
def test_a_best_value_that_is_none(tmp_path, value):
    (tmp_path / "best").mkdir()
    metadata = {"metric": "loss", "value": value, "step": 3, "metrics": {}, "settings": {}}
    (tmp_path / "best/best.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"best\.json cannot be read"):
        KeepBest(
            tmp_path, metric="loss", larger_is_better=False, settings={}, resumed=True,
            save=lambda weights, folder: None,
        )  # fmt: skip

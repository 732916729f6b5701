"""Readers of models and of what is added to them: weights, shapes, tokenizers, LoRA, words."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
from safetensors.numpy import save

from medsd_jax.classifier.model import CONFIG_FILE, load_classifier
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medsd_jax.files import read_object
from medsd_jax.interop.bert_folder import load_bert
from medsd_jax.interop.diffusers_folder import load_pipeline, save_pipeline
from medsd_jax.interop.learned_embeddings import read_embeddings, with_embeddings
from medsd_jax.interop.lora_files import read_lora
from medsd_jax.interop.model_index import check_index, read_json, read_text_classes
from medsd_jax.interop.safetensors_io import read_weights, read_weights_file
from medsd_jax.interop.text_encoder_folder import read_text_tokenizer
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.bert_config import BertTextConfig
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from medsd_jax.vision.image_processor import read_image_processor
from medsd_jax.vision.weights import read_state_dict
from tests.fuzz.mutations import Mutator, dumped, packed
from tests.tiny.bert import CONFIG, write_bert
from tests.tiny.classifier import write_classifier
from tests.tiny.pipeline import tiny_pipeline

Read = Callable[[Mutator], Any]
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F64": 8, "F8_E4M3": 1}


def _weights(work: Path) -> Read:
    tensors = {"a": np.arange(8, dtype=np.float32), "b": np.zeros((2, 3), np.float16)}
    whole = save(tensors, {"format": "pt"})

    def read(mutator: Mutator) -> None:
        (work / "w.safetensors").write_bytes(mutator.bytes(whole))
        read_weights_file(work / "w.safetensors")

    return read


def _weights_header(work: Path) -> Read:
    def read(mutator: Mutator) -> None:
        rng, header, end = mutator.rng, {}, 0
        for name in "abc"[: rng.randint(1, 3)]:
            kind, shape = rng.choice(list(SIZES)), [rng.randint(1, 3) for _ in range(2)]
            start, end = end, end + SIZES[kind] * shape[0] * shape[1]
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = dumped(mutator.value(header, rng.randint(0, 3)))
        if mutator.chance(0.1):
            text = text.replace(b'"b"', b'"a"')
        missing = rng.choice((0, 1, 1000)) if mutator.chance(0.3) else 0
        (work / "model.safetensors").write_bytes(packed(text, b"\1" * max(end - missing, 0)))
        read_weights(work, "model")

    return read


def _weights_index(work: Path) -> Read:
    name = "model-00001-of-00001.safetensors"
    (work / name).write_bytes(save({"a": np.zeros(4, np.float32)}))
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": name}}

    def read(mutator: Mutator) -> None:
        (work / "model.safetensors.index.json").write_bytes(mutator.json(index))
        read_weights(work, "model")

    return read


def _flax_weights(work: Path) -> Read:
    tree = {"conv_in": {"kernel": np.zeros((3, 3, 2, 4), np.float32), "bias": np.zeros(4)}}
    whole = flax.serialization.to_bytes(tree)

    def read(mutator: Mutator) -> None:
        (work / "flax_model.msgpack").write_bytes(mutator.bytes(whole))
        read_weights(work, "model")

    return read


def _torch_weights(work: Path) -> Read:
    import torch

    torch.save({"a": torch.zeros(2, 3)}, work / "whole.pt")
    whole = (work / "whole.pt").read_bytes()

    def read(mutator: Mutator) -> None:
        (work / "w.pt").write_bytes(mutator.bytes(whole))
        read_state_dict(work / "w.pt")

    return read


def _configs(work: Path) -> Read:
    save_pipeline(tiny_pipeline(), work)
    kinds = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}
    whole = {kind: read_json(work / part / "config.json") for part, kind in kinds.items()}
    whole[BertTextConfig] = CONFIG.to_dict()

    def read(mutator: Mutator) -> None:
        kind = mutator.rng.choice(list(whole))
        (work / "c.json").write_bytes(mutator.json(whole[kind], mutator.rng.randint(1, 2)))
        kind.from_dict(read_json(work / "c.json"), str(work / "c.json"))

    return read


def _model_index(work: Path) -> Read:
    save_pipeline(tiny_pipeline(), work / "m")
    whole = read_object(work / "m/model_index.json", "")

    def read(mutator: Mutator) -> None:
        (work / "model_index.json").write_bytes(mutator.json(whole))
        check_index(work / "model_index.json")
        read_text_classes(work / "model_index.json")

    return read


def _scheduler(work: Path) -> Read:
    whole = {**tiny_pipeline().scheduler, "trained_betas": None, "timestep_spacing": "leading"}

    def read(mutator: Mutator) -> None:
        (work / "s.json").write_bytes(mutator.json(whole, mutator.rng.randint(1, 2)))
        config = ScheduleConfig.from_dict(read_json(work / "s.json"), str(work / "s.json"))
        NoiseSchedule.from_config(config)

    return read


def _model_folder(work: Path) -> Read:
    """Any small file of a whole model, and the folder read to its end."""
    save_pipeline(tiny_pipeline(), work / "m")
    return _one_file_damaged(work / "m", load_pipeline)


def _tokenizers(work: Path) -> Read:
    save_pipeline(tiny_pipeline(), work / "clip")
    write_bert(work / "bert")
    clip = tiny_pipeline().text_encoder
    (work / "bert/tokenizer").mkdir()
    for path in (work / "bert").glob("*"):
        if path.is_file() and path.suffix in (".txt", ".json") and path.name != "config.json":
            shutil.copy(path, work / "bert/tokenizer" / path.name)

    def read(mutator: Mutator) -> None:
        kind, config = mutator.rng.choice((("clip", clip), ("bert", CONFIG)))
        shutil.rmtree(work / "t", ignore_errors=True)
        shutil.copytree(work / kind / "tokenizer", work / "t/tokenizer")
        if mutator.chance(0.3):
            (work / "t/tokenizer/tokenizer.json").unlink(missing_ok=True)
        path = mutator.rng.choice(sorted((work / "t/tokenizer").iterdir()))
        if path.suffix == ".json" and mutator.chance(0.7):
            path.write_bytes(mutator.json(read_object(path, "")))
        else:
            path.write_bytes(mutator.bytes(path.read_bytes()))
        tokenizer = read_text_tokenizer(work / "t", config)
        ids = encode_prompts(tokenizer, ["Chest X-ray. Large left pleural effusion.", ""])
        assert 0 <= ids.min() and ids.max() < config.vocab_size, (ids.min(), ids.max())

    return read


def _bert_folder(work: Path) -> Read:
    write_bert(work / "b")
    return _one_file_damaged(work / "b", load_bert)


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SETTINGS = {"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"to_q": 1}}


def _shape(mutator: Mutator, whole: tuple[int, ...]) -> tuple[int, ...]:
    if not mutator.chance(0.3):
        return whole
    rng = mutator.rng
    return tuple(rng.choice((0, 1, 2, 32, 33)) for _ in range(rng.choice((0, 1, 2, 2, 4))))


def _one_file_damaged(folder: Path, load: Callable[[Path], object]) -> Read:
    """Loads the folder each time with another of its texts damaged, and mends that again."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".txt")]
    whole = {path: path.read_bytes() for path in files}

    def read(mutator: Mutator) -> None:
        path = mutator.rng.choice(files)
        try:
            is_json = path.suffix == ".json" and mutator.chance(0.8)
            content = mutator.json(read_object(path, "")) if is_json else mutator.bytes(whole[path])
            path.write_bytes(content)
            load(folder)
        finally:
            path.write_bytes(whole[path])

    return read


def _lora(work: Path) -> Read:
    params = tiny_pipeline().params

    def read(mutator: Mutator) -> None:
        tensors = {
            f"{LAYER}.lora_A.weight": np.zeros(_shape(mutator, (2, 32)), np.float32),
            f"{LAYER}.lora_B.weight": np.zeros(_shape(mutator, (32, 2)), np.float32),
        }
        if mutator.chance(0.3):
            tensors[f"{LAYER}.alpha"] = np.full(_shape(mutator, ()), mutator.rng.choice((1, 0, -1)))
        header = {"format": "pt"}
        if mutator.chance(0.5):
            settings = mutator.json(SETTINGS, mutator.rng.randint(0, 2))
            header["lora_adapter_metadata"] = settings.decode("utf-8", "replace")
        whole = save({k: np.asarray(x, np.float32) for k, x in tensors.items()}, header)
        content = mutator.bytes(whole) if mutator.chance(0.3) else whole
        (work / "l.safetensors").write_bytes(content)
        read_lora(work / "l.safetensors", params)

    return read


def _lora_folder(work: Path) -> Read:
    params = tiny_pipeline().params
    name = f"base_model.model.{LAYER.removeprefix('unet.')}.lora_"
    matrices = {f"{name}A.weight": (2, 32), f"{name}B.weight": (32, 2)}
    zeros = {key: np.zeros(shape, np.float32) for key, shape in matrices.items()}
    (work / "adapter_model.safetensors").write_bytes(save(zeros))
    config = {"lora_alpha": 4, "r": 2, "alpha_pattern": {"to_q": 1}, "rank_pattern": {}}

    def read(mutator: Mutator) -> None:
        (work / "adapter_config.json").write_bytes(mutator.json(config))
        read_lora(work, params)

    return read


def _embeddings(work: Path) -> Read:
    model = tiny_pipeline()

    def read(mutator: Mutator) -> None:
        word = "<w>"
        if mutator.chance(0.5):
            word = mutator.rng.choice(("", " ", "lung", "\0", "é", "a" * 300, "<|endoftext|>"))
        kind = mutator.rng.choice((np.float32, np.int64, np.float16))
        kind = kind if mutator.chance(0.3) else np.float32
        whole = save({word: np.zeros(_shape(mutator, (1, 32)), kind)})
        content = mutator.bytes(whole) if mutator.chance(0.3) else whole
        (work / "e.safetensors").write_bytes(content)
        with_embeddings(model, *read_embeddings(work / "e.safetensors"))

    return read


def _classifier(work: Path) -> Read:
    write_classifier(work, 24)
    whole = read_object(work / CONFIG_FILE, "")

    def read(mutator: Mutator) -> None:
        (work / CONFIG_FILE).write_bytes(mutator.json(whole, mutator.rng.randint(1, 2)))
        load_classifier(work)

    return read


def _image_processor(work: Path) -> Read:
    whole = {
        "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 32}, "image_processor_type": "CLIPImageProcessor",
    }  # fmt: skip

    def read(mutator: Mutator) -> None:
        (work / "preprocessor_config.json").write_bytes(mutator.json(whole))
        read_image_processor(work)

    return read


TARGETS = {
    "weights": _weights,
    "weights_header": _weights_header,
    "weights_index": _weights_index,
    "flax_weights": _flax_weights,
    **({"torch_weights": _torch_weights} if importlib.util.find_spec("torch") else {}),
    "configs": _configs,
    "model_index": _model_index,
    "scheduler": _scheduler,
    "model_folder": _model_folder,
    "tokenizers": _tokenizers,
    "bert_folder": _bert_folder,
    "lora": _lora,
    "lora_folder": _lora_folder,
    "embeddings": _embeddings,
    "classifier": _classifier,
    "image_processor": _image_processor,
}

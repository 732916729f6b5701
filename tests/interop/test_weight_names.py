import logging

import pytest

from medsd_jax.errors import UserError
from medsd_jax.interop.weight_names import choose_weights, require_variant, shard_files

UNET = "diffusion_pytorch_model"
PLAIN = {
    "unet": {f"{UNET}.safetensors"},
    "vae": {f"{UNET}.safetensors"},
    "text_encoder": {"model.safetensors"},
}


def test_a_part_without_the_variant_gives_its_plain_file():
    names = {f"{UNET}.safetensors", f"{UNET}.non_ema.safetensors"}
    for variant, expected in (("non_ema", ".non_ema"), ("bf16", ""), (None, "")):
        chosen = choose_weights(names, UNET, variant=variant, where="unet")
        assert chosen == f"{UNET}{expected}.safetensors"


@pytest.mark.parametrize(
    "file",
    [
        f"{UNET}.non_ema.safetensors",
        f"{UNET}.safetensors.index.non_ema.json",
        f"{UNET}.non_ema.safetensors.index.json",
    ],
)
def test_one_part_must_have_the_variant(caplog, file):
    with pytest.raises(UserError, match=r"model: no 'non_ema' variant .*there is none"):
        require_variant(PLAIN, "non_ema", "model")
    parts = {**PLAIN, "unet": {file}}
    with caplog.at_level(logging.WARNING, "medsd_jax"):
        require_variant(parts, "non_ema", "model")
    (message,) = caplog.messages
    assert "only unet has the variant 'non_ema'; vae and text_encoder" in message
    with pytest.raises(UserError, match=r"no 'fp16' variant of the weights \(there: non_ema\)"):
        require_variant(parts, "fp16", "model")
    with pytest.raises(UserError, match=r"'non_ema' .* read it as the variant 'non_ema'"):
        choose_weights({file}, UNET, where="unet")
    assert choose_weights({file}, UNET, variant="non_ema", where="unet") == file


def test_a_variant_in_all_parts_is_not_worth_a_word(caplog):
    parts = {k: {next(iter(v)).replace(".safe", ".fp16.safe")} for k, v in PLAIN.items()}
    require_variant(parts, "fp16", "model")
    assert not caplog.messages


def test_a_variant_that_is_pickled_is_named_as_a_pickle():
    parts = {**PLAIN, "unet": {*PLAIN["unet"], f"{UNET}.non_ema.bin"}}
    with pytest.raises(UserError, match=rf"'non_ema' is there as pickled .*unet/{UNET}.non_ema"):
        require_variant(parts, "non_ema", "model")


def test_shards_are_those_of_the_file_that_was_chosen():
    """Not of the variant that was asked for, which this part may not have."""
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    half = [f"model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    middle = [f"model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    names = [*shards, *half, *middle]
    assert shard_files(names, "model", "model.safetensors.index.json") == shards
    for index in ("model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"):
        assert shard_files(names, "model", index) == sorted([*half, *middle])
    assert shard_files(names, "model", "model.safetensors") == []

"""swap-text-encoder: what it writes, that torch reads it to the same numbers, that it trains."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from medsd_jax.cli.main import main
from medsd_jax.interop.any_text_encoder import load_text_encoder
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.interop.torch_verify import ComponentInputs, TorchPipeline, our_components
from medsd_jax.models.text_encoder_swap import swap_text_encoder
from medsd_jax.workflows.models import load, save
from medsd_jax.workflows.sample import sample
from medsd_jax.workflows.train.run import train
from medsd_jax.workflows.verify_export import verify
from tests.tiny.bert import bert_params, write_bert
from tests.tiny.pipeline import SIZE, one_torch_thread, tiny_pipeline  # noqa: F401
from tests.tiny.run import recipe, write_model

PROMPT = "Chest X-ray. Large left pleural effusion."


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny Stable Diffusion whose U-Net attends to 32, and BERTs that are 32 and 16 wide."""
    folder = tmp_path_factory.mktemp("swap")
    save(tiny_pipeline(), folder / "base")
    write_bert(folder / "bert")
    write_bert(folder / "narrow", hidden_size=16)
    return folder


def swap(places, output, *words, encoder="bert"):
    return main(
        ["swap-text-encoder", "--model", str(places / "base"), "--encoder", str(places / encoder),
         "--output", str(output), "--max_length", "16", *words]
    )  # fmt: skip


def test_the_tokenizer_of_the_caller_keeps_its_length(places):
    """One BERT may go into several models, each with a length of its own."""
    bert = load_text_encoder(places / "bert", max_length=12)
    before = encode_prompts(bert.tokenizer, [PROMPT])
    swapped = [
        swap_text_encoder(load(places / "base"), *bert, max_length=length) for length in (16, 9)
    ]
    assert [model.tokenizer.model_max_length for model in swapped] == [16, 9]
    assert [encode_prompts(x.tokenizer, [PROMPT]).shape for x in swapped] == [(1, 16), (1, 9)]
    assert bert.tokenizer.model_max_length == 12
    np.testing.assert_array_equal(encode_prompts(bert.tokenizer, [PROMPT]), before)


def test_everything_else_keeps_its_bits(places, tmp_path, capsys):
    assert swap(places, tmp_path / "new") == 0
    base, new = load(places / "base"), load(tmp_path / "new")
    for name, x in base.params.items():
        if not name.startswith("text_encoder."):
            assert np.array_equal(new.params[name], x), name
    for name, x in bert_params().items():
        assert np.array_equal(new.params[f"text_encoder.{name}"], x), name
    assert new.tokenizer.model_max_length == 16
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "BertModel"]
    assert index["tokenizer"] == ["transformers", "BertTokenizer"]
    assert not (tmp_path / "new" / "text_encoder_projection").exists()
    assert "random" not in capsys.readouterr().out
    assert new.tokenizer.model_max_length == 16  # the model's own, not what a BERT would get
    alone = load_text_encoder(tmp_path / "new", max_length=9)
    assert alone.config == new.text_encoder and alone.params.keys() == bert_params().keys()


def test_widths_that_do_not_fit_name_both_and_the_ways_out(places, tmp_path, capsys):
    assert swap(places, tmp_path / "new", encoder="narrow") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    for words in ("16 wide", "attends to 32", "linear or mlp", "fresh U-Net"):
        assert words in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--projection", "mlp", "--fresh_unet"), "take one of the two"),
        (("--hidden_features", "8"), "needs projection = 'mlp'"),
        (("--max_length", "41"), "max_length = 41 must lie between 3 and the 40 positions"),
    ],
)
def test_contradictions(places, tmp_path, capsys, words, message):
    assert swap(places, tmp_path / "new", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "shapes"),
    [
        (("--projection", "linear"), {"0.weight": (32, 16), "0.bias": (32,)}),
        (
            ("--projection", "mlp", "--hidden_features", "24"),
            {"0.weight": (24, 16), "0.bias": (24,), "2.weight": (32, 24), "2.bias": (32,)},
        ),
    ],
)
def test_a_projection_has_a_folder_of_its_own(places, tmp_path, words, shapes):
    from safetensors.numpy import load_file

    assert swap(places, tmp_path / "new", *words, encoder="narrow") == 0
    stored = load_file(tmp_path / "new" / "text_encoder_projection" / "model.safetensors")
    assert {name: x.shape for name, x in stored.items()} == shapes
    model = load(tmp_path / "new")
    assert model.unet.cross_attention_dim == model.text_encoder.projection.out_features == 32
    save(model, tmp_path / "again")
    assert load(tmp_path / "again").fingerprint() == model.fingerprint()
    # Saved over, a model without a projection leaves none behind.
    save(tiny_pipeline(), tmp_path / "again")
    assert not (tmp_path / "again" / "text_encoder_projection").exists()


def test_a_lost_projection_is_missed(places, tmp_path, capsys):
    import shutil

    assert swap(places, tmp_path / "new", "--projection", "mlp") == 0
    shutil.rmtree(tmp_path / "new" / "text_encoder_projection")
    assert main(["export", "--model", str(tmp_path / "new"), "--output", str(tmp_path / "x")]) == 2
    assert "text_encoder_projection/config.json is missing" in capsys.readouterr().err


def test_a_fresh_unet_has_the_encoders_width(places, tmp_path):
    assert swap(places, tmp_path / "new", "--fresh_unet", encoder="narrow") == 0
    base, new = load(places / "base"), load(tmp_path / "new")
    assert new.unet == dataclasses.replace(base.unet, cross_attention_dim=16)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.kernel"
    assert new.params[name].shape == (16, 32)
    assert not np.array_equal(new.params["unet.conv_in.kernel"], base.params["unet.conv_in.kernel"])
    assert np.array_equal(new.params["vae.quant_conv.kernel"], base.params["vae.quant_conv.kernel"])


CASES = {
    "plain": ((), "bert"),
    "linear": (("--projection", "linear"), "narrow"),
    "mlp": (("--projection", "mlp"), "bert"),
}


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_torch_draws_the_same_image(places, tmp_path, case):
    """The README's lines for PyTorch, and our sampler, from the same noise."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from safetensors.torch import load_file

    words, encoder = CASES[case]
    folder = tmp_path / "new"
    assert swap(places, folder, *words, encoder=encoder) == 0
    model = load(folder)
    texts = [PROMPT, ""]
    ids = encode_prompts(model.tokenizer, texts)

    pipe = StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    assert type(pipe.text_encoder).__name__ == "BertModel"
    assert type(pipe.tokenizer).__name__ == "BertTokenizer"
    projection = torch.nn.Sequential()
    if case != "plain":
        weights = load_file(folder / "text_encoder_projection" / "model.safetensors")
        outer, inner = weights["0.weight"].shape
        layers = [torch.nn.Linear(inner, outer)]
        if case == "mlp":
            layers += [torch.nn.GELU(), torch.nn.Linear(outer, len(weights["2.bias"]))]
        projection = torch.nn.Sequential(*layers)
        projection.load_state_dict(weights)
    with torch.no_grad():
        tokens = pipe.tokenizer(
            texts, padding="max_length", max_length=pipe.tokenizer.model_max_length,
            truncation=True, return_tensors="pt",
        ).input_ids  # fmt: skip
        context = projection(pipe.text_encoder(tokens).last_hidden_state)
    assert np.array_equal(tokens.numpy(), ids)
    inputs = ComponentInputs(
        ids,
        latents=np.zeros((2, SIZE // 2, SIZE // 2, 4), np.float32),
        timesteps=np.int32([9, 9]),
        context=np.zeros((2, 16, 32), np.float32),
        images=np.zeros((2, SIZE, SIZE, 3), np.float32),
    )
    ours = our_components(model, inputs)["text_encoder"]
    # Float32 sums in another order: see tests/models/test_bert.py.
    assert np.abs(ours - context.numpy()).max() <= 1e-5 * np.abs(context.numpy()).max()
    theirs_again = TorchPipeline(folder)._context(tokens).detach().numpy()
    np.testing.assert_allclose(theirs_again, context.numpy(), rtol=0, atol=1e-6)

    start = np.random.default_rng(0).standard_normal((1, SIZE // 2, SIZE // 2, 4), np.float32)
    image = sample(
        model, [PROMPT], latents=start, num_steps=5, guidance_scale=4.0, progress=False,
        batch_size=8,
    )[0]  # fmt: skip
    pipe.scheduler = DDIMScheduler.from_config({**pipe.scheduler.config, "clip_sample": False})
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        prompt_embeds=context[:1], negative_prompt_embeds=context[1:], num_inference_steps=5,
        guidance_scale=4.0, latents=torch.from_numpy(np.moveaxis(start, -1, 1).copy()),
        height=SIZE, width=SIZE, output_type="np",
    ).images[0]  # fmt: skip
    difference = np.abs(image.astype(np.float64) - np.round(drawn * 255))
    assert image.std() > 5
    assert difference.mean() <= 0.5
    if case == "plain":  # the pipeline's own encoding is the same
        by_prompt = pipe(
            PROMPT, num_inference_steps=5, guidance_scale=4.0, output_type="np",
            latents=torch.from_numpy(np.moveaxis(start, -1, 1).copy()), height=SIZE, width=SIZE,
        ).images[0]  # fmt: skip
        np.testing.assert_allclose(by_prompt, drawn, rtol=0, atol=1e-5)


@pytest.mark.torch
def test_an_export_of_it_is_verified(places, tmp_path):
    assert swap(places, tmp_path / "new", "--projection", "mlp") == 0
    model = load(tmp_path / "new")
    save(model, tmp_path / "export")
    certificate = verify(model, tmp_path / "export", dtype="float32", num_steps=3)
    assert certificate.passed, certificate


@pytest.fixture
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("patterns", [(r"^unet\.",), (r"^unet\.", r"^text_encoder\.")])
def test_it_trains_and_the_pooler_keeps_its_bits(tmp_path, patterns, quick_compilation):
    write_model(tmp_path / "base")
    write_bert(tmp_path / "bert", hidden_size=16)
    words = ("--projection", "mlp", "--max_length", "16")
    assert (
        main(
            ["swap-text-encoder", "--model", str(tmp_path / "base"), "--encoder",
             str(tmp_path / "bert"), "--output", str(tmp_path / "new"), *words]
        )
        == 0
    )  # fmt: skip
    config = recipe(
        tmp_path / "new", tmp_path / "data", train__steps=2, preview__every_steps=0,
        validation__every_steps=0, adaptation__train=patterns, optim__weight_decay=0.5,
        optim__learning_rate=0.1, train__ema_decay=0.0,
    )  # fmt: skip
    train(config, tmp_path / "run")
    before, after = load(tmp_path / "new").params, load(tmp_path / "run").params
    same = {name for name, x in before.items() if np.array_equal(after[name], x)}
    frozen = {name for name in before if not name.startswith(("unet.", "text_encoder."))}
    text = {name for name in before if name.startswith("text_encoder.")}
    pooler = {f"text_encoder.pooler.dense.{leaf}" for leaf in ("kernel", "bias")}
    assert pooler < text and frozen <= same
    assert "unet.conv_in.kernel" not in same
    # Weight decay moves what gets no gradient yet: all but the zeros that biases start as.
    still = {name for name in text & same if before[name].any()}
    assert still == (pooler if len(patterns) == 2 else {n for n in text if before[n].any()})

"""Every spelling of a LoRA file gives the same difference; what is none is named as what it is."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medsd_jax.errors import UserError
from medsd_jax.interop import torch_verify
from medsd_jax.interop.diffusers_folder import save_pipeline
from medsd_jax.interop.lora_files import read_lora
from medsd_jax.workflows.models import add_lora
from medsd_jax.workflows.sample import sample
from tests.tiny.pipeline import SIZE, one_torch_thread, tiny_pipeline  # noqa: F401

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
UNET = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_out.0")
TEXT = "text_model.encoder.layers.1.self_attn"
RANK = 3
LATENTS = np.random.default_rng(2).standard_normal((2, SIZE // 2, SIZE // 2, 4)).astype(np.float32)


def pair(module):
    """A [r, I] and B [O, r] of a layer, as torch has them; both of them fixed by the name."""
    fan_in, fan_out = tiny_pipeline().params[f"{module}.kernel"].shape
    rng = np.random.default_rng(sum(module.encode()))
    return (
        rng.normal(0, 0.3, (RANK, fan_in)).astype(np.float32),
        rng.normal(0, 0.3, (fan_out, RANK)).astype(np.float32),
    )


def files(spell, modules):
    """Tensors of a file: `spell` maps (module, "down" or "up") to a name."""
    tensors = {}
    for module in modules:
        for kind, x in zip(("down", "up"), pair(module), strict=True):
            tensors[spell(module, kind)] = x
    return tensors


def letter(kind):
    return {"down": "A", "up": "B"}[kind]


def processor(module):
    head, _, leaf = module.removesuffix(".0").rpartition(".")
    return f"{head}.processor.{leaf}_lora"


def bare(module):
    return module.removeprefix("unet.").removeprefix("text_encoder.")


def attention(module, kind):
    """diffusers 0.12 to 0.14: the text encoder's projections by the U-Net's names."""
    for part in "qkv":
        module = module.replace(f".{part}_proj", f".to_{part}_lora")
    return f"{module.replace('.out_proj', '.to_out_lora')}.{kind}.weight"


UNET_LAYERS = tuple(f"unet.{x}" for x in UNET)
TEXT_LAYERS = tuple(f"text_encoder.{TEXT}.{x}" for x in ("q_proj", "out_proj"))
BOTH = UNET_LAYERS + TEXT_LAYERS
LAYOUTS = {
    "peft": (lambda m, k: f"{m}.lora_{letter(k)}.weight", BOTH),
    "adapter": (lambda m, k: f"{m}.lora_{letter(k)}.default_0.weight", BOTH),
    "down_up": (lambda m, k: f"{m}.lora.{k}.weight", UNET_LAYERS),
    "layer": (lambda m, k: f"{m}.lora_layer.{k}.weight", UNET_LAYERS),
    "processor": (lambda m, k: f"{processor(m)}.{k}.weight", UNET_LAYERS),
    "processor_bare": (lambda m, k: f"{bare(processor(m))}.{k}.weight", UNET_LAYERS),
    "linear_layer": (lambda m, k: f"{m}.lora_linear_layer.{k}.weight", TEXT_LAYERS),
    "text_attention": (attention, TEXT_LAYERS),
    "bare": (lambda m, k: f"{bare(m)}.lora_{letter(k)}.weight", BOTH),
    "base_model": (lambda m, k: f"base_model.model.{bare(m)}.lora_{letter(k)}.weight", BOTH),
    "part_base_model": (
        lambda m, k: f"unet.base_model.model.{bare(m)}.lora_{letter(k)}.weight",
        UNET_LAYERS,
    ),
    "wrapped": (lambda m, k: f"module._orig_mod.{bare(m)}.lora_{letter(k)}.weight", BOTH),
    "kohya": (
        lambda m, k: (
            m.replace("text_encoder.", "lora_te_").replace("unet.", "lora_unet_").replace(".", "_")
            + f".lora_{k}.weight"
        ),
        BOTH,
    ),
    "kohya_te1": (
        lambda m, k: (
            m.replace("text_encoder.", "lora_te1_").replace(".", "_") + f".lora_{k}.weight"
        ),
        TEXT_LAYERS,
    ),
}
DIFFUSERS_READS = ("processor", "down_up", "linear_layer", "text_attention", "kohya_te1")


def write(tmp_path, name, metadata=None, more=None):
    spell, modules = LAYOUTS[name]
    path = tmp_path / f"{name}.safetensors"
    save_file(
        files(spell, modules) | (more or {}), path, metadata={"format": "pt"} | (metadata or {})
    )
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_spelling_is_the_same_difference(tmp_path, name):
    model = tiny_pipeline()
    merged = add_lora(model, write(tmp_path, name)).params
    changed = set()
    for module in LAYOUTS[name][1]:
        kernel = f"{module}.kernel"
        down, up = pair(module)
        np.testing.assert_allclose(
            merged[kernel], model.params[kernel] + (up @ down).T, rtol=1e-5, atol=1e-6
        )
        changed.add(kernel)
    assert all(merged[key] is model.params[key] for key in model.params.keys() - changed)


@pytest.mark.torch
@pytest.mark.parametrize("name", DIFFUSERS_READS)
def test_diffusers_reads_the_older_spellings_alike(tmp_path, name):
    path = write(tmp_path, name)
    save_pipeline(tiny_pipeline(), tmp_path / "model")
    pipeline = torch_verify.TorchPipeline(tmp_path / "model")
    pipeline._pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    theirs = pipeline.sample(
        "effusion", "", LATENTS, num_inference_steps=4, guidance_scale=3.0, height=SIZE, width=SIZE
    ).astype(float)
    settings = {"num_steps": 4, "guidance_scale": 3.0, "height": SIZE, "width": SIZE}
    ours, plain = (
        sample(model, ["effusion"] * 2, latents=LATENTS, progress=False, **settings)
        for model in (add_lora(tiny_pipeline(), path), tiny_pipeline())
    )
    # 0.5 is what `export --verify` allows: rounding of the last steps to 1/255.
    assert np.abs(ours - theirs).mean() < 0.5 < np.abs(plain - theirs).mean()


def test_the_alpha_of_pefts_own_file_stands_beside_it(tmp_path, caplog):
    """peft's LoraConfig and get_peft_model write the file, and peft merges it."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    save_pipeline(tiny_pipeline(), tmp_path / "model")
    unet = torch_verify.TorchPipeline(tmp_path / "model")._pipe.unet
    expected = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(unet, expected)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload().state_dict()
    ours = add_lora(tiny_pipeline(), tmp_path / "adapter").params
    kernels = [k for k in ours if k.endswith("to_q.kernel") and k.startswith("unet.")]
    for kernel in kernels:
        name = kernel.removeprefix("unet.").replace(".kernel", ".weight")
        np.testing.assert_allclose(ours[kernel], merged[name].numpy().T, rtol=1e-4, atol=1e-5)
        assert np.abs(ours[kernel] - tiny_pipeline().params[kernel]).max() > 0.1
    assert kernels and "taken to be its rank" not in caplog.text
    (tmp_path / "alone").mkdir()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    shutil.copy(file, tmp_path / "alone" / "mine.safetensors")
    assert set(read_lora(tmp_path / "alone", tiny_pipeline().params).scales.values()) == {1.0}
    assert "taken to be its rank" in caplog.text
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LOHA"}))
    with pytest.raises(UserError, match="peft_type is 'LOHA'"):
        read_lora(tmp_path / "adapter", tiny_pipeline().params)


@pytest.mark.parametrize(
    "header, message",
    [
        ("{", "is not valid JSON"),
        ("[1, 2]", "must hold a JSON object, not list"),
        ('{"unet.lora_alpha": "four"}', "alpha must be a finite number, not 'four'"),
        ('{"unet.lora_alpha": NaN}', "alpha must be a finite number, not 'nan'"),
        ('{"unet.lora_alpha": [3]}', "alpha must be a finite number"),
        ('{"unet.alpha_pattern": ["to_q"]}', "alpha_pattern must be a table"),
        ('{"unet.alpha_pattern": {"to_q(": 3}}', "holds what is no regular expression"),
        ('{"unet.alpha_pattern": {"to_q": true}}', "alpha must be a finite number"),
        ('{"unet.lora_alpha": 1' + "0" * 400 + "}", "alpha must be a finite number"),
        ('{"unet.alpha_pattern": {"x{99999999999}": 3}}', "holds what is no regular expression"),
        ("[" * 10**5 + "]" * 10**5, "is nested too deep"),
        ('{"unet.use_rslora": true}', "rank-stabilised"),
    ],
)
def test_headers_that_say_nonsense(tmp_path, header, message):
    path = write(tmp_path, "peft", {"lora_adapter_metadata": header})
    with pytest.raises(UserError, match=message) as error:
        read_lora(path, tiny_pipeline().params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, x, message",
    [
        ("alpha", np.ones(3, np.float32), "alpha of .* must be one finite number"),
        ("alpha", np.float32(np.inf), "alpha of .* must be one finite number"),
        ("lora_down.weight", np.float32(1), r"is float32 \[\]; a LoRA has"),
        ("lora_up.weight", np.ones((2, 2, 2), np.float32), r"is float32 \[2, 2, 2\]"),
        ("lora_down.weight", np.zeros((0, 32), np.float32), r"is float32 \[0, 32\]"),
        ("lora_down.weight", np.ones((3, 32), np.int8), "is int8"),
    ],
)
def test_tensors_that_are_no_lora(tmp_path, name, x, message):
    layer = "lora_unet_" + UNET[0].replace(".", "_")
    path = write(tmp_path, "kohya", more={f"{layer}.{name}": np.asarray(x)})
    with pytest.raises(UserError, match=message):
        read_lora(path, tiny_pipeline().params)


@pytest.mark.parametrize(
    "name, message",
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight", "CompVis"),
        ("diffusion_model.middle_block.1.proj_in.lora_A.weight", "CompVis"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "second text encoder"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", "FLUX"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "a LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight", "Tucker"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "a DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "a DoRA"),
        ("unet.mid_blocks.attentions.0.proj_in.lora_A.weight", "of another model"),
        ("unet.mid_block.attentions.0.proj_in.weight", "neither of the two layouts"),
    ],
)
def test_other_kinds_are_named(tmp_path, name, message):
    path = write(tmp_path, "kohya", more={name: np.ones((3, 32), np.float32)})
    with pytest.raises(UserError, match=message):
        read_lora(path, tiny_pipeline().params)


def test_two_adapters_in_one_file(tmp_path):
    other = f"{UNET_LAYERS[0]}.lora_A.second.weight"
    path = write(tmp_path, "adapter", more={other: pair(UNET_LAYERS[0])[0]})
    with pytest.raises(UserError, match="a second LoRA of the same layer"):
        read_lora(path, tiny_pipeline().params)


def test_a_folder_with_a_file_of_another_name(tmp_path):
    path = write(tmp_path, "kohya")
    assert len(read_lora(tmp_path, tiny_pipeline().params).scales) == len(BOTH)
    shutil.copy(path, tmp_path / "copy.safetensors")
    with pytest.raises(UserError, match=r"2 others .copy.safetensors, kohya.safetensors."):
        read_lora(tmp_path, tiny_pipeline().params)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no other safetensors file: give the file"):
        read_lora(tmp_path / "empty", tiny_pipeline().params)
    (tmp_path / "empty" / "pytorch_lora_weights.bin").write_bytes(b"PK\3\4 a pickle")
    with pytest.raises(UserError, match="is a pickle of torch"):
        read_lora(tmp_path / "empty", tiny_pipeline().params)


def test_how_many_layers_is_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        read_lora(write(tmp_path, "kohya"), tiny_pipeline().params)
    assert f"a LoRA of {len(BOTH)} layers" in caplog.text
    assert load_file(tmp_path / "kohya.safetensors").keys() == files(*LAYOUTS["kohya"]).keys()

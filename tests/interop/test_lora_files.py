"""LoRA files: diffusers reads ours, we read diffusers' and kohya's, foreign ones are refused."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medsd_jax.adaptation.lora import LoraSettings, adapted_kernels, lora
from medsd_jax.errors import UserError
from medsd_jax.interop import torch_verify
from medsd_jax.interop.diffusers_folder import save_pipeline
from medsd_jax.interop.lora_files import KOHYA_FILE, PEFT_FILE, read_lora, write_lora
from medsd_jax.workflows.models import add_lora
from medsd_jax.workflows.sample import sample
from tests.tiny.pipeline import SIZE, one_torch_thread, tiny_pipeline  # noqa: F401

TARGETS = (r"^unet\..*attn\d\.to_(q|k|v|out\.0)\.", r"^unet\..*proj_in\.", r"_proj\.")
RANK, ALPHA = 4, 6.0
SETTINGS = {"num_steps": 4, "guidance_scale": 3.0}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request):
    """SD 1's 1x1 convolutions and SD 2's linear layers around the transformers."""
    return tiny_pipeline(request.param)


def random_matrices(model):
    adaptation = lora(LoraSettings(TARGETS, RANK, ALPHA))
    rng = np.random.default_rng(1)
    started = adaptation.init(model.params, jax.random.key(0))
    return {k: 0.3 * rng.standard_normal(x.shape).astype(np.float32) for k, x in started.items()}


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """(folder of the model, folder of the LoRA files, the matrices)."""
    folder = tmp_path_factory.mktemp("lora")
    save_pipeline(model, folder / "model")
    matrices = random_matrices(model)
    write_lora(folder / "lora", matrices, ALPHA)
    return folder / "model", folder / "lora", matrices


def our_image(model, latents):
    return sample(
        model, ["effusion"] * 2, latents=latents, height=SIZE, width=SIZE, progress=False,
        **SETTINGS,
    )  # fmt: skip


def torch_image(pipeline, latents):
    return pipeline.sample(
        "effusion", "", latents, num_inference_steps=4, guidance_scale=3.0, height=SIZE, width=SIZE
    )


def difference(a, b):
    return np.abs(a.astype(float) - b).mean()


LATENTS = np.random.default_rng(2).standard_normal((2, SIZE // 2, SIZE // 2, 4)).astype(np.float32)


@pytest.mark.parametrize("name", [PEFT_FILE, KOHYA_FILE])
def test_diffusers_reads_ours_and_draws_the_same(model, written, name):
    folder, files, _ = written
    plain = our_image(model, LATENTS)
    ours = our_image(add_lora(model, files / name), LATENTS)
    assert difference(plain, ours) > 5  # the LoRA does something
    pipeline = torch_verify.TorchPipeline(folder)
    pipeline._pipe.load_lora_weights(str(files), weight_name=name)
    parts = (pipeline._pipe.unet, pipeline._pipe.text_encoder)
    adapted = [k for part in parts for k in part.state_dict() if "lora_A" in k]
    assert len(adapted) == len(load_file(files / PEFT_FILE)) // 2
    # 0.5 is what `export --verify` allows: rounding of the last steps to 1/255.
    assert difference(ours, torch_image(pipeline, LATENTS)) < 0.5


@pytest.mark.parametrize("name", [PEFT_FILE, KOHYA_FILE])
def test_round_trip(model, written, name):
    _, files, matrices = written
    result = read_lora(files / name, model.params)
    assert result.matrices.keys() == matrices.keys()
    adapted = lora(LoraSettings(TARGETS, RANK, ALPHA)).apply(model.params, matrices)
    merged = add_lora(model, files / name).params
    for kernel in adapted_kernels(matrices):
        np.testing.assert_allclose(merged[kernel], adapted[kernel], rtol=1e-5, atol=1e-6)
    for name in model.params.keys() - set(adapted_kernels(matrices)):
        assert merged[name] is model.params[name]
    for name, x in add_lora(model, files, scale=0.0).params.items():
        np.testing.assert_array_equal(x, model.params[name])


def test_we_read_what_diffusers_writes(model, written, tmp_path):
    """With PEFT's own rank and alpha, another alpha for some layers among them."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import get_peft_model_state_dict

    pipeline = torch_verify.TorchPipeline(written[0])
    pipe = pipeline._pipe
    configs = {
        "unet": LoraConfig(
            r=3, lora_alpha=5, target_modules=["to_q", "to_v"], alpha_pattern={"attn1.to_v": 2}
        ),
        "text_encoder": LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"]),
    }
    torch.manual_seed(0)
    layers, headers = {}, {}
    for part, config in configs.items():
        module = getattr(pipe, part)
        inject_adapter_in_model(config, module)
        with torch.no_grad():
            for name, x in module.named_parameters():
                if "lora_B" in name:
                    x.normal_(0, 0.3)
        layers[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(
            get_peft_model_state_dict(module)
        )
        headers[f"{part}_lora_adapter_metadata"] = config.to_dict()
    theirs = torch_image(pipeline, LATENTS)
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers, **headers)
    ours = our_image(add_lora(model, tmp_path), LATENTS)
    assert difference(ours, our_image(model, LATENTS)) > 3
    assert difference(ours, theirs) < 0.5


def test_kohya_file_with_its_own_alpha(model, written, tmp_path):
    """Half the alpha is half the difference; without alpha the scale is 1."""
    _, files, _ = written
    tensors = load_file(files / KOHYA_FILE)
    halved = {k: np.asarray(x / 2) if k.endswith(".alpha") else x for k, x in tensors.items()}
    save_file(halved, tmp_path / "half.safetensors")
    save_file({k: x for k, x in tensors.items() if "alpha" not in k}, tmp_path / "no.safetensors")
    for name, factor in (("half", 0.5), ("no", RANK / ALPHA)):
        one = add_lora(model, tmp_path / f"{name}.safetensors").params
        two = add_lora(model, files, scale=factor).params
        for key in one:
            np.testing.assert_allclose(one[key], two[key], rtol=1e-5, atol=1e-6)


def damaged(tensors, what):
    first = next(name for name in tensors if name.endswith("lora_A.weight"))
    match what:
        case "one matrix":
            return {k: x for k, x in tensors.items() if k != first}
        case "another width":
            return tensors | {first: tensors[first][:, :-1].copy()}
        case "another model":
            return {k.replace("mid_block", "mid_blocks"): x for k, x in tensors.items()}
        case "another layout":
            return tensors | {"unet.x.to_q.lora_downwards.weight": tensors[first]}
        case "another kind":
            return tensors | {
                first.replace("lora_A.weight", "lora_magnitude_vector"): tensors[first]
            }


@pytest.mark.parametrize(
    "what, message",
    [
        ("one matrix", "one of its two matrices"),
        ("another width", "of the wrong shape"),
        ("another model", "of another model"),
        ("another layout", "neither of the two layouts"),
        ("another kind", "neither of the two layouts"),
    ],
)
def test_foreign_files_are_refused(written, tmp_path, what, message):
    path = tmp_path / "bad.safetensors"
    save_file(damaged(load_file(written[1] / PEFT_FILE), what), path)
    with pytest.raises(UserError, match=message):
        read_lora(path, tiny_pipeline().params)


def test_lora_of_a_wider_model(written):
    wider = dataclasses.replace(
        tiny_pipeline(), params={"unet.conv_in.kernel": np.zeros((3, 3, 4, 8))}
    )
    with pytest.raises(UserError, match="another model"):
        add_lora(wider, written[1])


def test_missing_file_and_scale(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        add_lora(tiny_pipeline(), tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match="scale = nan"):
        add_lora(tiny_pipeline(), tmp_path, scale=float("nan"))

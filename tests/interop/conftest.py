"""Tiny models on disk: one written by us, one by torch diffusers."""

import shutil

import numpy as np
import pytest

from medsd_jax.interop.diffusers_folder import save_pipeline
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from medsd_jax.models.params import abstract, with_prefix
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL

LENGTH = 12


def _byte_tokenizer(pad_token="<|endoftext|>"):
    """CLIP's tokenizer with two merges; every other token is one byte."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable]
    letters += [chr(256 + n) for n in range(256 - len(printable))]
    merges = [("l", "u"), ("lu", "n")]
    words = [*letters, *(letter + "</w>" for letter in letters), "lu", "lun"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=LENGTH)


@pytest.fixture(scope="session")
def tokenizer():
    return _byte_tokenizer()


@pytest.fixture(scope="session")
def exclamation_tokenizer():
    return _byte_tokenizer("!")


@pytest.fixture(scope="session")
def tiny_model(tokenizer) -> StableDiffusion:
    unet = UNetConfig(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=16, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = VAEConfig(
        sample_size=16, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    made = {
        "unet": lambda rngs: UNet2DConditionModel(unet, rngs=rngs),
        "vae": lambda rngs: AutoencoderKL(vae, rngs=rngs),
        "text_encoder": lambda rngs: CLIPTextModel(text, rngs=rngs),
    }
    rng = np.random.default_rng(0)
    params = {}
    for name, make in made.items():
        shapes = abstract(make)[1]
        arrays = {k: rng.standard_normal(x.shape, np.float32) for k, x in shapes.items()}
        params |= with_prefix(arrays, name)
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    return StableDiffusion(unet, vae, text, scheduler, tokenizer, params)


@pytest.fixture(scope="session")
def _saved(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_pipeline(tiny_model, folder)
    return folder


@pytest.fixture
def tiny_folder(_saved, tmp_path):
    """A folder of one's own to damage."""
    return shutil.copytree(_saved, tmp_path / "model")


@pytest.fixture(scope="session")
def torch_folder(tokenizer, tmp_path_factory):
    """What torch diffusers' StableDiffusionPipeline.save_pretrained writes."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4),
        cross_attention_dim=32, use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        sample_size=16, block_out_channels=(32, 64), latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet,
        scheduler=diffusers.DDIMScheduler(
            prediction_type="v_prediction", steps_offset=1, clip_sample=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("torch") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def same_bits():
    """Whether two dicts hold the same names, dtypes, shapes and bits."""

    def check(a, b):
        assert a.keys() == b.keys()
        for name in a:
            x, y = np.asarray(a[name]), np.asarray(b[name])
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            assert np.array_equal(x.view(f"u{x.itemsize}"), y.view(f"u{y.itemsize}")), name

    return check

"""Our weights' names and shapes are diffusers' and transformers' own, at tiny and at full size."""

import math

import pytest

torch = pytest.importorskip("torch")

from flax import nnx  # noqa: E402

from medsd_jax.models import params  # noqa: E402
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig  # noqa: E402
from tests.models import oracles  # noqa: E402
from tests.tiny import networks  # noqa: E402

pytestmark = pytest.mark.torch

TINY = {
    "unet_sd1": networks.UNET_SD1,
    "unet_sd2": networks.UNET_SD2,
    "vae": networks.VAE,
    "clip_sd1": networks.CLIP_SD1,
    "clip_sd2": networks.CLIP_SD2,
}
# (config, class, list of keys, number of weights that the model cards state)
PUBLISHED = [
    ("sd15_unet_config", UNetConfig, "sd1_unet.keys", 859_520_964),
    ("sd21base_unet_config", UNetConfig, "sd2_unet.keys", 865_910_724),
    ("sd21_unet_config", UNetConfig, "sd2_unet.keys", 865_910_724),
    ("sd15_vae_config", VAEConfig, "sd_vae.keys", 83_653_863),
    ("sd15_text_encoder_config", CLIPTextConfig, "sd1_text_encoder.keys", 123_060_480),
    ("sd21base_text_encoder_config", CLIPTextConfig, "sd2_text_encoder.keys", 340_387_840),
]


def meta_module(cfg) -> torch.nn.Module:
    with torch.device("meta"):
        return oracles.torch_module(cfg)


@pytest.mark.parametrize("name", TINY)
def test_names_and_shapes_equal_torch_modules(name):
    _, like = params.abstract(oracles.our_module(TINY[name]))
    theirs = {
        oracles.published_name(k): tuple(x.shape)
        for k, x in meta_module(TINY[name]).state_dict().items()
    }
    assert oracles.torch_shapes(like) == theirs


@pytest.mark.parametrize(
    ("config", "cls", "keys", "count"), PUBLISHED, ids=[p[0] for p in PUBLISHED]
)
def test_names_and_shapes_equal_published_checkpoints(config, cls, keys, count):
    cfg = cls.from_dict(oracles.published(config), f"{config}.json")
    listed = oracles.published(keys)
    _, like = params.abstract(oracles.our_module(cfg))
    assert oracles.torch_shapes(like) == {k: tuple(v[0]) for k, v in listed["tensors"].items()}
    assert {x.dtype.name for x in like.values()} == {"float32"}
    assert sum(math.prod(x.shape) for x in like.values()) == count == listed["num_parameters"]


def test_every_published_key_list_is_covered():
    oracles.published("sd_vae.keys")  # skips where there are none
    result = {p.name.removesuffix(".json") for p in oracles.PUBLISHED.glob("*.keys.json")}
    assert result == {keys for _, _, keys, _ in PUBLISHED}


@pytest.mark.parametrize("name", TINY)
def test_norms_have_torch_epsilon_and_groups(name):
    """An epsilon of 1e-6 for 1e-5 hides below any tolerance while variances are near 1."""
    theirs = {
        oracles.published_name(f"{k}.weight").removesuffix(".weight"): (
            getattr(m, "num_groups", None),
            m.eps,
        )
        for k, m in meta_module(TINY[name]).named_modules()
        if isinstance(m, torch.nn.GroupNorm | torch.nn.LayerNorm)
    }
    graphdef, like = params.abstract(oracles.our_module(TINY[name]))
    module = params.bind(graphdef, like)
    ours = {
        ".".join(map(str, path)): (getattr(m, "num_groups", None), m.epsilon)
        for path, m in nnx.iter_modules(module)
        if isinstance(m, nnx.GroupNorm | nnx.LayerNorm)
    }
    assert theirs
    assert ours == theirs

"""The same weights and inputs through torch and through us give the same numbers, in float32.

Each check runs at a tiny size by default and, marked slow, at the size of every published config.
"""

import gc
import time

import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from medsd_jax.models import layers, params  # noqa: E402
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig  # noqa: E402
from tests.models import oracles  # noqa: E402
from tests.tiny import networks  # noqa: E402

pytestmark = pytest.mark.torch

# Float32 sums in another order: 4e-7 to 5e-6 of the largest value was measured, tiny and full size,
# the most in gradients. A wrong GELU or padding gives 1e-4 and more; a wrong epsilon may give less,
# so test_name_contract.py compares epsilons themselves.
TOLERANCE = 1e-5
full = [pytest.mark.slow, pytest.mark.timeout(1800)]


def config_of(source, cls):
    """A tiny config as it is, or a published one by the name of its file."""
    return source if isinstance(source, cls) else cls.from_dict(oracles.published(source), source)


def check(request, name: str, ours, theirs, seconds: float) -> None:
    measured = oracles.error(ours, theirs)
    print(f"{request.node.name} {name}: error {measured:.2e}, ours took {seconds:.1f} s")
    assert measured <= TOLERANCE


def timed(small: bool, graphdef, weights, *args, method="__call__"):
    """Output, and the seconds it took with compilation."""
    jit = networks.jit if small else jax.jit
    start = time.perf_counter()
    out = jax.block_until_ready(networks.run(graphdef, weights, *args, method=method, jit=jit))
    return out, time.perf_counter() - start


def swap_weights(module, cfg):
    """Our module with the torch module's weights. The caller drops torch's before ours runs."""
    swapped = oracles.ours_with_weights_of(module, cfg)
    gc.collect()
    return swapped


@pytest.mark.parametrize(
    ("source", "height", "width"),
    [
        pytest.param(networks.UNET_SD1, 8, 8, id="sd1-8x8"),
        pytest.param(networks.UNET_SD2, 10, 6, id="sd2-10x6"),
        pytest.param("sd15_unet_config", 64, 64, id="sd15", marks=full),
        pytest.param("sd21base_unet_config", 64, 64, id="sd21base", marks=full),
        pytest.param("sd21_unet_config", 96, 96, id="sd21", marks=full),
    ],
)
def test_unet(request, source, height, width):
    cfg = config_of(source, UNetConfig)
    small = cfg is source
    inputs = networks.unet_inputs(
        cfg, height, width, batch=2 if small else 1, tokens=7 if small else 77
    )
    latents, timesteps, context = inputs
    module = oracles.random_torch_module(cfg, seed=0)
    with torch.inference_mode():
        theirs = oracles.nhwc(
            module(
                oracles.nchw(latents), torch.from_numpy(timesteps), torch.from_numpy(context)
            ).sample
        )
    graphdef, weights = swap_weights(module, cfg)
    del module
    ours, seconds = timed(small, graphdef, weights, *inputs)
    check(request, "unet", ours, theirs, seconds)


@pytest.mark.parametrize(
    ("source", "height", "width"),
    [
        pytest.param(networks.VAE, 32, 24, id="tiny"),
        pytest.param("sd15_vae_config", 512, 512, id="sd15", marks=full),
    ],
)
def test_vae(request, source, height, width):
    cfg = config_of(source, VAEConfig)
    small = cfg is source
    rng = np.random.default_rng(1)
    h, w = height // cfg.downscale, width // cfg.downscale
    images = rng.uniform(-1, 1, (1, height, width, cfg.in_channels)).astype(np.float32)
    latents = rng.standard_normal((1, h, w, cfg.latent_channels), np.float32)
    module = oracles.random_torch_module(cfg, seed=0)
    with torch.inference_mode():
        posterior = module.encode(oracles.nchw(images)).latent_dist
        mean, logvar = oracles.nhwc(posterior.mean), oracles.nhwc(posterior.logvar)
        decoded = oracles.nhwc(module.decode(oracles.nchw(latents)).sample)
    graphdef, weights = swap_weights(module, cfg)
    del module, posterior
    (our_mean, our_logvar), seconds = timed(small, graphdef, weights, images, method="encode")
    check(request, "mean", our_mean, mean, seconds)
    check(request, "logvar", our_logvar, logvar, seconds)
    ours, seconds = timed(small, graphdef, weights, latents, method="decode")
    check(request, "decode", ours, decoded, seconds)


def test_vae_odd_image_and_clipped_logvar():
    """Sides that 4 does not divide lose the remainder; a wild log variance is clipped."""
    module = oracles.random_torch_module(networks.VAE, seed=2)
    with torch.no_grad():
        module.quant_conv.weight *= 300
    images = np.random.default_rng(3).uniform(-1, 1, (2, 19, 22, 3)).astype(np.float32)
    with torch.inference_mode():
        theirs = oracles.nhwc(module.encode(oracles.nchw(images)).latent_dist.logvar)
    _, ours = networks.run(
        *oracles.ours_with_weights_of(module, networks.VAE), images, method="encode"
    )
    assert theirs.min() == -30
    assert theirs.max() == 20
    assert oracles.error(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(networks.CLIP_SD1, id="quick_gelu"),
        pytest.param(networks.CLIP_SD2, id="gelu"),
        pytest.param("sd15_text_encoder_config", id="sd15", marks=full),
        pytest.param("sd21base_text_encoder_config", id="sd21base", marks=full),
    ],
)
def test_clip(request, source):
    cfg = config_of(source, CLIPTextConfig)
    small = cfg is source
    shape = (2, cfg.max_position_embeddings)
    prompt_ids = np.random.default_rng(4).integers(0, cfg.vocab_size, shape, np.int32)
    module = oracles.random_torch_module(cfg, seed=0)
    with torch.inference_mode():
        theirs = module(torch.from_numpy(prompt_ids).long()).last_hidden_state.numpy()
    graphdef, weights = swap_weights(module, cfg)
    del module
    ours, seconds = timed(small, graphdef, weights, prompt_ids)
    check(request, "clip", ours, theirs, seconds)


def test_unet_gradients_equal_torch_autograd():
    """Of a weighted sum of the output, for every weight and for the inputs; odd latent sides."""
    cfg = networks.UNET_SD1
    latents, timesteps, context = networks.unet_inputs(cfg, 9, 7)
    weighting = np.random.default_rng(5).standard_normal(latents.shape, np.float32)
    module = oracles.random_torch_module(cfg, seed=0)
    graphdef, weights = oracles.ours_with_weights_of(module, cfg)

    x, c = oracles.nchw(latents).requires_grad_(), torch.from_numpy(context).requires_grad_()
    out = module(x, torch.from_numpy(timesteps), c).sample
    (out * oracles.nchw(weighting)).sum().backward()
    theirs = {name: weight.grad.numpy() for name, weight in module.named_parameters()}

    def loss(weights, latents, context):
        out = params.bind(graphdef, weights)(latents, jnp.asarray(timesteps), context)
        return jnp.sum(out * weighting)

    grads, d_latents, d_context = networks.jit(jax.grad(loss, argnums=(0, 1, 2)))(
        weights, latents, context
    )
    ours = oracles.to_torch(grads)
    assert ours.keys() == theirs.keys()
    errors = {name: oracles.error(ours[name], theirs[name]) for name in ours}
    errors |= {
        "latents": oracles.error(d_latents, oracles.nhwc(x.grad)),
        "context": oracles.error(d_context, c.grad.numpy()),
    }
    worst = max(errors, key=errors.get)
    print(f"worst gradient {worst}: {errors[worst]:.2e}")
    assert errors[worst] <= TOLERANCE, worst


@pytest.mark.parametrize("flip_sin_to_cos", [True, False])
@pytest.mark.parametrize("freq_shift", [0, 1])
def test_sinusoidal_embedding(flip_sin_to_cos, freq_shift):
    from diffusers.models.embeddings import get_timestep_embedding

    timesteps = np.arange(1000, dtype=np.int32)
    theirs = get_timestep_embedding(
        torch.from_numpy(timesteps),
        320,
        flip_sin_to_cos=flip_sin_to_cos,
        downscale_freq_shift=freq_shift,
    )
    ours = layers.sinusoidal_embedding(
        jnp.asarray(timesteps), 320, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift
    )
    # Angles below 1000 have units in the last place of 6.1e-5; two roundings may fall apart.
    assert oracles.error(ours, theirs.numpy()) <= 1.3e-4


@pytest.mark.parametrize("size", [(6, 10), (5, 9), (3, 5), (7, 4), (12, 20)])
def test_upsample_nearest(size):
    """Also to sizes that are no multiple, where index rounding decides."""
    x = np.random.default_rng(6).standard_normal((2, 3, 5, 4), np.float32)
    theirs = torch.nn.functional.interpolate(oracles.nchw(x), size=size, mode="nearest")
    np.testing.assert_array_equal(
        layers.upsample_nearest(jnp.asarray(x), *size), oracles.nhwc(theirs)
    )

"""The train step as diffusers' own training script does it: torch modules, torch autograd.

Import it only after `pytest.importorskip("torch")`.
"""

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import compute_snr

from medsd_jax.interop.torch_layout import to_torch
from medsd_jax.models.params import component
from medsd_jax.models.stable_diffusion import StableDiffusion
from tests.models.oracles import nchw, published_name, torch_module

PARTS = ("unet", "vae", "text_encoder")


def torch_modules(model: StableDiffusion) -> dict[str, torch.nn.Module]:
    """torch's three modules with a copy of the model's weights."""
    modules = {}
    for part in PARTS:
        module = torch_module(getattr(model, part))
        weights = to_torch({k: np.asarray(x) for k, x in component(model.params, part).items()})
        state = {
            name: torch.from_numpy(np.array(weights[published_name(name)]))
            for name in module.state_dict()
        }
        module.load_state_dict(state)
        modules[part] = module
    return modules


def gradients(modules: dict[str, torch.nn.Module], parts) -> dict[str, np.ndarray]:
    """Gradient of every weight of these parts, by its name and in its layout in torch."""
    return {
        f"{part}.{published_name(name)}": weight.grad.numpy()
        for part in parts
        for name, weight in modules[part].named_parameters()
    }


def ours_in_torch(params, parts) -> dict[str, np.ndarray]:
    """Our weights (or their gradients) under torch's names and in torch's layout."""
    return {
        f"{part}.{name}": x
        for part in parts
        for name, x in to_torch(
            {k: np.asarray(x) for k, x in component(params, part).items()}
        ).items()
    }


def encode(vae: torch.nn.Module, batch) -> DiagonalGaussianDistribution:
    """The posterior of the batch's images, or the one whose moments it carries."""
    if "latent_moments" in batch:
        return DiagonalGaussianDistribution(nchw(batch["latent_moments"]))
    with torch.no_grad():
        return vae.encode(on_its_range(batch["images"])).latent_dist


def on_its_range(images_u8: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] uint8 -> [B, 3, H, W] in [-1, 1]."""
    return nchw(images_u8) / 127.5 - 1


def diffusion_loss(modules, model: StableDiffusion, batch, draws, *, empty, gamma) -> torch.Tensor:
    """Our batch and our random numbers through torch."""
    scheduler = DDPMScheduler.from_config(model.scheduler)
    ids = np.where(draws.drop_caption[:, None], empty[None], batch["prompt_ids"])
    timesteps = torch.from_numpy(np.array(draws.timesteps)).long()
    noise = nchw(np.asarray(draws.noise))
    posterior = encode(modules["vae"], batch)
    latents = posterior.mean + posterior.std * nchw(np.asarray(draws.posterior))
    latents = latents * model.vae.scaling_factor
    noisy = scheduler.add_noise(latents, noise, timesteps)
    context = modules["text_encoder"](torch.from_numpy(ids).long()).last_hidden_state
    output = modules["unet"](noisy, timesteps, context).sample
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    expected = scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
    losses = torch.nn.functional.mse_loss(output, expected, reduction="none").mean(dim=(1, 2, 3))
    if gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        losses = losses * torch.clamp(snr, max=gamma) / (snr + 1 if v_prediction else snr)
    return losses.mean()


def vae_loss(module, images, noise, *, kl_weight: float):
    """L1 and KL per pixel value, and their weighted sum."""
    x = on_its_range(images)
    posterior = module.encode(x).latent_dist
    z = posterior.mean + posterior.std * nchw(np.asarray(noise))
    l1 = torch.abs(module.decode(z).sample - x).mean()
    kl = posterior.kl().sum() / x.numel()
    return l1 + kl_weight * kl, l1, kl

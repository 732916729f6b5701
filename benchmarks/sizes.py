"""Named sizes: what a benchmark computes, whichever framework does it."""

from dataclasses import dataclass

from medsd_jax.models.config import UNetConfig, VAEConfig

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


@dataclass(frozen=True)
class Size:
    """Shapes of one benchmark.

    Attributes:
        unet: U-Net shapes; ``unet.sample_size`` is the side of the latents.
        vae: VAE shapes, for sampling.
        tokens: S, length of the text context.
        train_batch: default batch of the train step.
        sample_batch: default number of images sampled at once.
    """

    unet: UNetConfig
    vae: VAEConfig
    tokens: int
    train_batch: int
    sample_batch: int


def _unet(channels: tuple[int, ...], **other) -> UNetConfig:
    """A U-Net with cross-attention at all levels but the deepest, as in Stable Diffusion."""
    down = (CROSS,) * (len(channels) - 1) + (PLAIN,)
    up = tuple(block.replace("Down", "Up") for block in reversed(down))
    return UNetConfig(
        block_out_channels=channels, down_block_types=down, up_block_types=up, **other
    )


def _vae(channels: tuple[int, ...], **other) -> VAEConfig:
    levels = len(channels)
    return VAEConfig(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **other,
    )


_SD_CHANNELS = (320, 640, 1280, 1280)
_SD_VAE = _vae((128, 256, 512, 512), layers_per_block=2)

SIZES = {
    # For the smoke test, which mostly compiles: one level, attention in the middle block.
    "tiny": Size(
        _unet(
            (16,),
            sample_size=8,
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
        ),
        _vae((8,), norm_num_groups=8, sample_size=8),
        tokens=5,
        train_batch=2,
        sample_batch=1,
    ),
    # 12,847,236 parameters in the U-Net; the VAE is Stable Diffusion's at 1/8 of its width, one
    # layer a block: 256 x 256 pixels.
    "small": Size(
        _unet(
            (64, 128, 256),
            sample_size=32,
            layers_per_block=1,
            cross_attention_dim=256,
            attention_head_dim=8,
        ),
        _vae((16, 32, 64, 64), norm_num_groups=16, sample_size=256),
        tokens=77,
        train_batch=4,
        sample_batch=4,
    ),
    # 859,520,964 parameters, 512 x 512 pixels.
    "sd15": Size(
        _unet(_SD_CHANNELS, cross_attention_dim=768, attention_head_dim=8),
        _SD_VAE,
        tokens=77,
        train_batch=4,
        sample_batch=1,
    ),
    # 865,910,724 parameters, 512 x 512 pixels.
    "sd2-base": Size(
        _unet(
            _SD_CHANNELS,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        _SD_VAE,
        tokens=77,
        train_batch=4,
        sample_batch=1,
    ),
}

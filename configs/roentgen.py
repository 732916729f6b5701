r"""RoentGen (arXiv 2211.12737): U-Net and text encoder, radiographs and impressions, 512 pixels.

Command:   medsd-jax train --config roentgen --workdir runs/roentgen \
               --config.data.source=folder --config.data.path=FOLDER
           Sampled as in the paper:
               medsd-jax sample --model runs/roentgen --sampler pndm --num_steps 75 \
                   --guidance_scale 4 --prompt "..." --output runs/roentgen_samples
Hardware:  planned for a TPU v5e-64: mesh data=16, fsdp=4, 4 images per chip, 256 in all. A chip
           holds 8.25 of its 16 GiB; a step takes 13.2 TFLOP of it, 0.07 s at its peak, and 298 GB
           of operands, 0.36 s if all of them go through its memory. By (half an hour of a CPU core
           and 24 GB, libtpu 0.0.42.1):
               medsd-jax plan --config roentgen --topology v5e:8x8 \
                   --config.model.path=FOLDER --config.data.path=FOLDER
           The paper took two instances of 32 A100, 8 images on each, one day for 60,000 steps.
Expected:  not run at this size yet. The paper: FID 3.6 in torchxrayvision's features, 54.9 in
           InceptionV3's, at 60,000 steps.
Data:      your own: neither MIMIC-CXR nor DICOM is read here. The paper's pairs, as others tell who
           built it again: PA views with the impression, of 7 to 77 CLIP tokens; patients p10 to p18
           train, p19 is held out. Write them as 8-bit images with a metadata.csv (file_name, text,
           patient_id, split): files of more bits are scaled by each one's own minimum and maximum.
Not here:  the paper's image-text retrieval and its metrics of report generation.
Settings:  the paper's: Stable Diffusion 1.4, learning rate 5e-5, constant, batch 256, bfloat16,
           60,000 steps (its grid: 1,000, 12,500 and 60,000), the text encoder trained too.
           Silent, as the same group's later code: AdamW (0.9, 0.999), weight decay 0.01, gradients
           clipped at 1, no EMA, no caption dropout, square by padding.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults with RoentGen's settings."""
    config = training_config()
    config.model.path = "CompVis/stable-diffusion-v1-4"
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.adaptation.train = (r"^unet\.", r"^text_encoder\.")
    config.data.source = "folder"
    config.data.batch_size = 256
    config.data.cache_latents = True
    config.mesh.data = -1
    config.mesh.fsdp = 4
    config.optim.learning_rate = 5e-5
    config.train.steps = 60_000
    config.train.ema_decay = 0.0
    config.train.caption_dropout = 0.0
    config.checkpoint.every_steps = 1000
    config.validation.every_steps = 1000
    config.validation.num_images = 512
    for section in (config.preview, config.evaluation):
        section.sampler = "pndm"
        section.num_steps = 75
        section.guidance_scale = 4.0
    config.preview.every_steps = 1000
    return config

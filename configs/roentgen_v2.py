r"""RoentGen-v2 (arXiv 2508.16783): Stable Diffusion 2.1-base, age and sex in the prompt.

The text of every image is "{age} year old {race} {female|male}. {impression}", race being optional:
write it into the column `text` of metadata.csv; of the data, roentgen.py tells more. The paper's
filter, which rejects samples by classifiers of age, sex and race, is not here.

Command:   medsd-jax train --config roentgen_v2 --workdir runs/roentgen_v2 \
               --config.data.source=folder --config.data.path=FOLDER
           Sampled as in the paper:
               medsd-jax sample --model runs/roentgen_v2 --sampler pndm --num_steps 75 \
                   --guidance_scale 3 --prompt "50 year old female. Normal chest radiograph." \
                   --output runs/roentgen_v2_samples
Hardware:  planned for a TPU v5e-16: mesh data=4, fsdp=4, 3 images per chip, 48 in all. A chip holds
           7.44 of its 16 GiB; a step takes 10.3 TFLOP of it, 0.05 s at its peak, and 225 GB of
           operands, 0.28 s if all of them go through its memory. By (half an hour of a CPU core and
           24 GB, libtpu 0.0.42.1):
               medsd-jax plan --config roentgen_v2 --topology v5e:4x4 \
                   --config.model.path=FOLDER --config.data.path=FOLDER
Expected:  not run at this size yet; the paper's own FID is not known.
Settings:  the published recipe's: learning rate 1e-5, cosine, 500 steps of warm-up, 60,000 steps,
           AdamW (0.9, 0.999), weight decay 0.01, gradients clipped at 1, bfloat16, no EMA, no
           caption dropout, square by padding, seed 873. Its batch of 48 may be meant for each GPU.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """roentgen.py with the differences of the second version."""
    config = load_config("roentgen")
    config.seed = 873
    config.model.path = "stabilityai/stable-diffusion-2-1-base"
    config.data.batch_size = 48
    config.optim.learning_rate = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 500
    config.checkpoint.every_steps = 500
    for section in (config.preview, config.evaluation):
        section.guidance_scale = 3.0
    config.preview.prompts = (
        "50 year old female. Normal chest radiograph.",
        "50 year old female. Moderate left pleural effusion.",
    )
    return config

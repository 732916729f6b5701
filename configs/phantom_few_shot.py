r"""Ten phantoms, five of them with an effusion, and prior preservation: the paper's E6 made small.

Command:   medsd-jax train --config phantom_few_shot --workdir runs/few_shot \
               --config.model.path=runs/base   (after phantom_base)
           printf '%s\n' prompt 'A photo of a lung xray' \
               'A photo of a lung xray with a visible pleural effusion' > runs/prompts.csv
           medsd-jax evaluate --real runs/demo/data:validation --model runs/few_shot \
               --prompts_csv runs/prompts.csv --num_images 128 --same_seeds \
               --guidance_scale 4 \
               --features classifier=runs/demo/classifier --classifier runs/demo/classifier \
               --output runs/few_shot_evaluation
           Its prior has the prompt of the phantoms without a finding, unlike few_shot.py's: the
           base model draws that one well, and was taught no wider class.
Hardware:  two CPU cores, about 3 minutes, and 2 for the evaluation.
Expected:  98.4 % (96.1 to 99.4) of the 256 images show what their prompt asks for; the model of
           phantom_base reaches 51 % (41 to 61, 100 images). The intervals in the
           phantom recipes' headers take all 256 for independent; the command counts the 128 pairs.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults with ten images and a prior."""
    config = training_config()
    config.data.num_images = 1000
    config.data.phantom_seed = 100  # other patients than those of the base model
    config.data.image_size = 64
    config.data.batch_size = 10
    config.data.cache_latents = True
    config.few_shot.images_per_prompt = 5
    config.prior.weight = 1.0
    config.prior.batch_size = 10
    config.prior.prompts = (config.few_shot.prompt_without,)
    config.prior.same_prompts_because = "the base model draws it as good phantoms without a finding"
    # At 2e-4 and 200 steps the two prompts are not told apart yet.
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 10
    config.train.steps = 400
    config.train.ema_decay = 0.98
    config.train.caption_dropout = 0.0
    config.checkpoint.every_steps = 200
    config.checkpoint.keep = 1
    config.validation.every_steps = 100
    config.validation.num_images = 256
    config.preview.every_steps = 200
    config.preview.num_steps = 25
    return config

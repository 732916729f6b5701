r"""A projection from a small BERT into the small CLIP's space: the paper's E4 made small.

Command:   medsd-jax train-projection --config phantom_text_projection \
               --workdir runs/projection --config.model.path=runs/base \
               --config.encoder.path=FOLDER_OF_A_BERT   (after phantom_base)
           `medsd-jax reproduce` makes a BERT that is small enough.
Hardware:  two CPU cores, about a minute.
Expected:  images as of the base model, and no effusions: it has never seen one.
"""

from ml_collections import ConfigDict

from medsd_jax.config import text_projection_config
from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """The projection's base on the captions that the base model was trained on."""
    config = text_projection_config()
    config.data.num_images = 4000
    config.data.image_size = 64
    config.data.phantom_findings = load_config("phantom_base_vae").data.phantom_findings
    config.data.batch_size = 64
    config.optim.warmup_steps = 50
    config.train.steps = 500
    config.checkpoint.keep = 1
    return config

r"""The small base model as it is, asked for an effusion that it has never seen: E2 made small.

Command:   medsd-jax evaluate --config phantom_out_of_the_box \
               --model runs/reproduction/base --real runs/reproduction/real \
               --classifier runs/reproduction/classifier \
               --features classifier=runs/reproduction/classifier \
               --output runs/out_of_the_box
               (after medsd-jax reproduce --scale phantom --output runs/reproduction,
               which measures by this recipe, too, and samples every row by it)
Hardware:  two CPU cores, 2 minutes.
Expected:  50.0 % (43.9 to 56.1) of 256 images show what their prompt asks for: no effusions; FID
           26.4 (22.0 to 30.9) in the classifier's features.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """out_of_the_box.py by DDIM, whose 50 steps are enough for 64 pixels."""
    config = load_config("out_of_the_box")
    config.sampler = "ddim"
    config.num_steps = 50
    return config

r"""What synthetic images add to 200 real ones, at the demo's size; phantoms stand in for both.

Command:   medsd-jax data --source phantom --num_images 1000 --seed 7 \
               --output runs/utility/drawn --export_folder runs/utility/synthetic
           medsd-jax downstream-utility --config demo_downstream_utility \
               --workdir runs/utility --config.synthetic.path=runs/utility/synthetic
Hardware:  two CPU cores, about 8 minutes.
Expected:  no gain: mean AUROC 0.864 (0.839 to 0.890) with real images alone, -0.018 (-0.058 to
           +0.020) with synthetic ones alone, -0.009 (-0.042 to +0.026) with both, -0.046 (-0.085 to
           -0.016) with synthetic, then real ones: 300 steps are what limits all four.
"""

from ml_collections import ConfigDict

from medsd_jax.config import downstream_utility_config
from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """The demo's classifier on few real images, with synthetic ones beside them."""
    config, small = downstream_utility_config(), load_config("demo_classifier")
    for name in ("data", "labels", "network", "optim"):
        config[name] = small[name]
    config.real_images = 200
    config.train.steps = 300
    config.fine_tuning.learning_rate = 1e-3
    return config

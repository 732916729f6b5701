r"""The VAE of a small model that has never seen a pleural effusion: where few-shot recipes start.

Command:   medsd-jax train --config phantom_base_vae --workdir runs/base_vae \
               --config.model.path=runs/demo/untrained   (`make demo` makes that folder)
Hardware:  two CPU cores, about 3 minutes.
Expected:  validation L1 (posterior mean) of about 0.08 on the [-1, 1] range; 8x8x4 latents.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config

FINDINGS = ("cardiomegaly", "pneumothorax", "nodule")


def get_config() -> ConfigDict:
    """The demo's VAE without effusions."""
    config = load_config("demo_vae")
    config.data.phantom_findings = FINDINGS
    return config

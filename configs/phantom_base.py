r"""U-Net and text encoder that have never seen a pleural effusion: where few-shot recipes start.

Command:   medsd-jax train --config phantom_base --workdir runs/base \
               --config.model.path=runs/base_vae   (after phantom_base_vae)
Hardware:  two CPU cores, about 7 minutes.
Expected:  asked for a pleural effusion, it draws none.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """The demo's model without effusions."""
    config = load_config("demo")
    config.data.phantom_findings = load_config("phantom_base_vae").data.phantom_findings
    return config

"""How text encoders are probed."""

from ml_collections import ConfigDict, config_dict


def text_probe_config() -> ConfigDict:
    """How `medsd-jax probe-text` measures."""
    config = ConfigDict()
    # How a text becomes one vector: "last", "mean", "cls" or "kth:N"; its --help says more.
    config.pooling = "mean"
    # Keep a BERT's tokens from attending to padding, which the U-Net's context does not.
    config.attention_mask = False
    config.max_length = 77  # tokens of a text for a BERT; a Stable Diffusion model has its own
    # Findings; empty: all labels of the data set that are 1 or 0.
    config.labels = ()
    # Of the patients, who score the probes, where the source names no split.
    config.validation_fraction = 0.3
    config.num_images = config_dict.placeholder(int)  # phantom only; None: 3000
    config.num_resamples = 1000  # of the bootstrap over patients
    config.seed = 0  # of the resamples
    return config

"""The config of a textual projection: another text encoder into CLIP's space."""

from ml_collections import ConfigDict, config_dict

from medsd_jax.config.sections import (
    add_checkpoint,
    add_data,
    add_log,
    add_mesh,
    add_model,
    add_optim,
)


def text_projection_config() -> ConfigDict:
    """All keys of ``train-projection``."""
    config = ConfigDict()
    config.seed = 0  # of the projection's initial weights and the order of the prompts

    add_model(config)  # whose CLIP is imitated, and whose U-Net and VAE are kept
    config.encoder = ConfigDict()
    config.encoder.path = config_dict.required_placeholder(str)  # folder or hub id of a BERT
    config.projection = ConfigDict()
    # Width of the one hidden layer; None: the encoder's.
    config.projection.hidden_features = config_dict.placeholder(int)

    add_data(config)
    # A text file with one prompt per line; None: the captions of data.source.
    config.data.prompts = config_dict.placeholder(str)
    # Of the distinct prompts of a file, or of the patients where the source names no split.
    config.data.validation_fraction = 0.1
    config.data.batch_size = 256  # prompts per optimizer step, over all devices

    add_optim(config)
    config.optim.learning_rate = 1e-3  # the largest of the schedule
    config.optim.schedule = "cosine"
    config.train = ConfigDict()
    config.train.steps = 1000  # optimizer steps
    config.train.accumulation_steps = 1  # micro-batches per optimizer step
    config.train.ema_decay = 0.0  # moving average of the weights; 0 switches it off
    add_mesh(config)
    add_log(config)
    add_checkpoint(config)
    config.validation = ConfigDict()
    config.validation.every_steps = 250  # and at step 0 and at the end; 0 switches it off
    config.validation.num_prompts = 1000  # the first ones of those that validate
    return config

"""The config of a classifier's training."""

from ml_collections import ConfigDict, config_dict

from medsd_jax.config.sections import add_data, add_log, add_mesh, add_optim


def classifier_config() -> ConfigDict:
    """All keys of ``train-classifier``."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights, data order and augmentation

    add_data(config)
    config.data.resize_mode = "pad"  # "pad" to a square (RoentGen), "crop" its centre, or "squash"
    config.data.num_workers = 2  # threads that decode images
    config.data.image_size = 224
    config.data.batch_size = 64
    config.labels = (
        "pleural_effusion",
    )  # yes/no labels of the data set; unknown ones cost nothing
    # Share of the training patients that calibrate the probabilities and train nothing.
    config.calibration_fraction = 0.1

    config.network = ConfigDict()  # DenseNet-121; group norm and one grey channel without weights
    config.network.growth_rate = 32  # channels that each layer adds
    config.network.block_config = (6, 12, 24, 16)  # layers of each dense block
    config.network.num_init_features = 64  # channels behind the first convolution
    # Start from the folder of a classifier that was trained here, or from a weight file
    # (.safetensors, .pth or .pt) of torchvision's densenet121 or torchxrayvision's
    # densenet121-res224-*; None: from random weights. The class scores start anew, batch norm keeps
    # its stored statistics. A tenth of the learning rate below is usual.
    config.network.weights = config_dict.placeholder(str)

    config.augmentation = ConfigDict()
    config.augmentation.shift = 0.05  # largest displacement, as a share of the side
    config.augmentation.contrast = 0.15  # grey values times 1 +- this
    config.augmentation.brightness = 0.15  # and moved by at most this, on [-1, 1]

    add_optim(config)
    config.optim.learning_rate = 1e-3  # the largest of the schedule
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50

    config.train = ConfigDict()
    config.train.steps = 2000
    add_mesh(config)
    add_log(config)
    return config

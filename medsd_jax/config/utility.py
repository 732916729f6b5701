"""The config of the comparison that says what synthetic images are good for."""

from ml_collections import ConfigDict, config_dict

from medsd_jax.config.classifier import classifier_config


def downstream_utility_config() -> ConfigDict:
    """All keys of ``downstream-utility``: those of a classifier, and the synthetic images.

    Every arm takes train.steps optimizer steps of data.batch_size images.
    """
    config = classifier_config()
    config.seeds = 3  # trainings of each arm, with seed, seed + 1, ...
    # Real images to train on, of the first patients by their hash; None: all that neither
    # validate nor calibrate.
    config.real_images = config_dict.placeholder(int)

    config.synthetic = ConfigDict()
    # As `evaluate --synthetic`: a folder that sample.py wrote, an image folder with metadata.csv, a
    # .csv of paths, or FOLDER:train of a prepared data set.
    config.synthetic.path = config_dict.required_placeholder(str)
    # CSV with a column prompt and a column (1, 0 or empty) for each label: what the prompts ask
    # for. None: the labels are those of the set's table or, where it has none, what
    # data/findings.py reads in the prompts.
    config.synthetic.labels_by_prompt = config_dict.placeholder(str)

    config.fine_tuning = ConfigDict()  # of the arm that trains on synthetic, then on real images
    config.fine_tuning.share = 0.5  # of train.steps, the last ones, on real images
    config.fine_tuning.learning_rate = 3e-4  # their largest; optim.schedule starts over with them
    return config

r"""The classifier for images of 64 pixels, learnt from NIH ChestX-ray14, split by patient.

Command:   medsd-jax train-classifier --config nih14_classifier_64px \
               --workdir runs/nih_classifier --config.data.path=FOLDER
Hardware:  two CPU cores, about two minutes.
Expected:  AUROC 0.675 (0.576 to 0.807) for pleural effusion on 59 held-out patients.
"""

from ml_collections import ConfigDict

from medsd_jax.config.recipes import load_config


def get_config() -> ConfigDict:
    """demo_classifier.py with real X-rays; the patients held out are those of nih14_64px.py."""
    config = load_config("demo_classifier")
    config.data.source = "nih14"
    config.data.validation_fraction = 0.3
    config.labels = ("pleural_effusion", "cardiomegaly")
    return config

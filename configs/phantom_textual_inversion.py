r"""One new word for ten phantoms: the paper's E5 (arXiv 2210.04133) made small.

Command:   python train.py --config configs/phantom_textual_inversion.py \
               --workdir runs/inversion --config.model.path=runs/base
               (after configs/phantom_base.py)
Hardware:  two CPU cores, about 2 minutes.
Expected:  50.4 % (44.3 to 56.5) of 256 pictures show what their prompt asks for: no effusions.
"""

from ml_collections import ConfigDict

from configs import phantom_few_shot, textual_inversion


def get_config() -> ConfigDict:
    """phantom_few_shot.py's data, and a word in the place of a U-Net."""
    config = phantom_few_shot.get_config()
    steps = config.train.steps
    config = textual_inversion.with_word(config)
    config.optim.learning_rate = 5e-3
    config.train.steps = steps
    return config

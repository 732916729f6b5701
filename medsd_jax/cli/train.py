"""``medsd-jax train``: adapt a model by a recipe."""

from collections.abc import Sequence

from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.config import training_config
from medsd_jax.config.recipes import check_recipe


def run_words(argv: Sequence[str], prog: str) -> int:
    """Trains by the command line's recipe; the result is a diffusers folder WORKDIR/model.

    Returns:
        0; or 1 when the training diverged.
    """
    flags = parse_train_flags(argv, prog)
    check_recipe(flags.config, flags.recipe, training_config, "finetune")
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.train.run import train

    start_devices(flags.hosts)
    train(flags.config, flags.workdir)
    print(f"the trained model is in {flags.workdir / 'model'}")
    return 0

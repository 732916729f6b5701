"""``medsd-jax train-projection``: a frozen BERT is taught to speak CLIP's language."""

from collections.abc import Sequence

from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.config import text_projection_config
from medsd_jax.config.recipes import check_recipe


def run_words(argv: Sequence[str], prog: str) -> int:
    """Trains by a recipe; its flags are those of `train`."""
    flags = parse_train_flags(
        argv,
        prog,
        "--config text_projection --workdir runs/projection "
        "--config.encoder.path=StanfordAIMI/RadBERT --config.data.prompts=prompts.txt",
    )
    check_recipe(flags.config, flags.recipe, text_projection_config, "text_projection")
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.train.projection import train_projection

    start_devices(flags.hosts)
    train_projection(flags.config, flags.workdir)
    print(f"the model with the trained projection is in {flags.workdir / 'model'}")
    return 0

"""``medsd-jax train-classifier``: a classifier that measures generated images."""

from collections.abc import Sequence

from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.config import classifier_config
from medsd_jax.config.recipes import check_recipe


def run_words(argv: Sequence[str], prog: str) -> int:
    """Trains by a recipe; its flags are those of `train`."""
    flags = parse_train_flags(
        argv,
        prog,
        "--config demo_classifier --workdir runs/classifier",
    )
    check_recipe(flags.config, flags.recipe, classifier_config, "demo_classifier")
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.train_classifier import REPORT, in_words, train_classifier

    start_devices(flags.hosts)
    report = train_classifier(flags.config, flags.workdir)
    for name, scores in report.labels.items():
        print(f"{name}: {in_words(scores)}")
    print(f"the classifier is in {flags.workdir}, its scores in {flags.workdir / REPORT}")
    return 0

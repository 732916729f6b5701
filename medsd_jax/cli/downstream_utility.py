"""``medsd-jax downstream-utility``: what synthetic images add to a classifier.

The same classifier is trained on real images, on synthetic ones, on both, and on synthetic and
then on real ones, with several seeds, and tested on the same real patients. An arm that is done is
kept: the same command goes on where it was interrupted.
"""

from collections.abc import Sequence

from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.config import downstream_utility_config
from medsd_jax.config.recipes import check_recipe


def run_words(argv: Sequence[str], prog: str) -> int:
    """Compares by a recipe; its flags are those of `train`."""
    flags = parse_train_flags(
        argv,
        prog,
        "--config demo_downstream_utility --workdir runs/utility "
        "--config.synthetic.path=my_synthetic_images",
    )
    check_recipe(
        flags.config,
        flags.recipe,
        downstream_utility_config,
        "demo_downstream_utility",
    )
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.reports.downstream_utility import REPORT, table
    from medsd_jax.workflows.downstream_utility import measure_utility

    start_devices(flags.hosts)
    report = measure_utility(flags.config, flags.workdir)
    print(table(report))
    print(f"all numbers are in {flags.workdir / REPORT}, the classifiers in {flags.workdir}/arms")
    return 0

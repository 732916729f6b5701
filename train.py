"""Train: ``python train.py --config RECIPE --workdir DIR [--config.key=value ...]``."""

import sys

from medsd_jax.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("train"))

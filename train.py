"""Train: ``python train.py --config configs/X.py --workdir DIR [--config.key=value ...]``."""

import sys

from medsd_jax.cli.main import exit_code
from medsd_jax.cli.train import run

if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))

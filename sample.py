"""Sample pictures: ``python sample.py --model M --prompt "..." --output DIR``."""

import sys

from medsd_jax.cli.main import exit_code
from medsd_jax.cli.sample import run

if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv[1:])))

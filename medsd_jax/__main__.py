"""``python -m medsd_jax COMMAND`` is ``medsd-jax COMMAND``."""

import sys

from medsd_jax.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script())

"""``python -m medsd_jax COMMAND``."""

import sys

from medsd_jax.cli.main import main
from medsd_jax.interrupts import program

if __name__ == "__main__":
    with program():
        code = main()
    sys.exit(code)

"""``python -m medsd_jax COMMAND``."""

import sys

from medsd_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

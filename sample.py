"""Sample images: ``python sample.py --model M --prompt "..." --output DIR``."""

import sys

from medsd_jax.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("sample"))

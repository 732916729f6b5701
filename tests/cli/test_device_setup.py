"""What every program sets up before its first computation."""

import platform
import subprocess
import sys

import pytest

COUNT_PAGE_FAULTS = """
import resource
import numpy as np
from medsd_jax.cli.device_setup import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**26, np.uint8)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    def second_time(keep: bool) -> int:
        code = COUNT_PAGE_FAULTS.format(keep=keep)
        return int(subprocess.check_output([sys.executable, "-c", code], text=True))

    # NumPy asks for huge pages, so the number without may be 32 as well as 16,384.
    assert second_time(keep=True) < 8 <= second_time(keep=False)

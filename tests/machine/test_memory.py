"""What the C library does with freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from metaloss.machine import memory

memory.keep_freed()

def step():
    tensors = [torch.ones(2**21 // 4) for _ in range(24)]  # 2 MiB each

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's habit")
def test_what_a_step_frees_is_there_for_the_next():
    """48 MiB of 12,288 pages a step, which would be asked for again each time."""
    faults = float(subprocess.check_output([sys.executable, "-c", FAULTS], text=True))
    assert faults < 10

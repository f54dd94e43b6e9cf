"""What the C library does with freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from metaloss import memory

if sys.argv[1] == "kept":
    memory.keep_freed()

def step():
    tensors = [torch.ones(2**21 // 4) for _ in range(8)]  # 2 MiB each

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's habit")
def test_what_a_step_frees_is_there_for_the_next():
    """A step of 16 MiB faults for thousands of pages otherwise, and for none then."""
    faults = {
        how: float(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))
        for how in ("given back", "kept")
    }
    assert faults["kept"] < 10
    assert faults["kept"] < faults["given back"]

"""A sweep whose processes are killed again and again ends with the numbers of one left in peace."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaloss.experiments.sweeps import cells
from metaloss.experiments.sweeps.standing import standing
from metaloss.machine import sealed
from tests.helpers import COSTS, ROOT, differences, rows

#: In the full run: some hundred processes, each of which imports torch. That a run survives is in
#: the small one (tests/runs/test_survival.py).
pytestmark = pytest.mark.full

KILLS = 30
SPEC = """
Sweep.tasks = ['tasks/digits_mlp.gin']
Sweep.methods = ['methods/baseline.gin', 'methods/adalfl_letter.gin']
Sweep.seeds = 2
Sweep.bindings = [
    'Runner.steps = 150',
    'Runner.checkpoint_every = 10',
    'Runner.log_every = 10',
    'Runner.evaluate_every = 50',
    'Runner.figures = 0',
    'backbones.mlp.hidden = (16,)',
    'meta_optimizers.offline_unrolled.steps = 60',
    'meta_optimizers.offline_unrolled.scale_steps = 2',
]
"""


def start(spec, root):
    words = [sys.executable, ROOT / "tools/sweep.py", "run", spec, f"--output_dir={root}"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def training(root):
    """The processes that train below a folder, whoever started them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(word.startswith(f"--output_dir={root}/") for word in words):
            found.append(int(folder.name))
    return found


def done(spec, root):
    return all(standing(cell, root).state == "finished" for cell in cells.load([spec])[1])


def numbers(folder):
    """What a run has computed: all that it leaves but for times, memory and places."""
    result = json.loads((folder / "result.json").read_text())
    state = sealed.load(folder / "checkpoint.pt")["state"]
    loss = folder / "loss" / "model.safetensors"
    return {
        "result": {k: v for k, v in result.items() if k not in COSTS},
        "rows": rows(folder),
        "state": {k: v for k, v in state.items() if k not in ("seconds", "parts")},
        "loss": loss.read_bytes() if loss.exists() else None,
    }


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes by /proc")
def test_kills_change_nothing(tmp_path):
    """SIGKILL of the sweeper, or of one of its runs, at random moments; the sweep is started again.

    The moments come from a seeded generator; where they fall depends on the machine.
    """
    spec = tmp_path / "spec.gin"
    spec.write_text(SPEC)
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    assert start(spec, calm).wait() == 0

    draw = random.Random(0)
    sweeper, kills = start(spec, disturbed), 0
    while kills < KILLS:
        time.sleep(draw.uniform(0.2, 3.0))
        if sweeper.poll() is not None:
            if done(spec, disturbed):
                # Only its last traces are there to be lost: take the results, and go on.
                for result in disturbed.glob("*/*/*/result.json"):
                    result.unlink()
            sweeper = start(spec, disturbed)
            continue
        victims = [sweeper.pid, *training(disturbed)]
        try:
            os.kill(draw.choice(victims), signal.SIGKILL)
            kills += 1
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 600
    while not done(spec, disturbed):
        assert time.monotonic() < deadline
        sweeper.wait()
        while training(disturbed):  # orphans of a sweeper that was killed
            time.sleep(0.1)
        sweeper = start(spec, disturbed)
    sweeper.wait()
    found = [cell.name for cell in cells.load([spec])[1]]
    assert len(found) == 4
    for name in found:
        assert differences(numbers(calm / name), numbers(disturbed / name)) == [], name

"""Run folders as runs leave them, in milliseconds: real configurations, made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from metaloss import config

ADALFL = ("tasks/mnist_lenet5.gin", "methods/adalfl_letter.gin")
METRICS = {"mnist": "error_rate", "digits": "error_rate"}


def write_run(
    folder: Path,
    files=ADALFL,
    bindings=(),
    seed=0,
    test=0.01,
    status="finished",
    seconds=36.0,
    rows=None,
    **meta,
) -> Path:
    """A run folder; the status "unfinished" leaves result.json out."""
    folder.mkdir(parents=True)
    text = config.load(files, bindings).text
    (folder / "config.gin").write_text(text)
    task, backbone = (line.rpartition(".")[2].rstrip("()") for line in text.splitlines()[:2])
    metric = METRICS.get(task, "mse")
    if rows is None:
        rows = [
            {"phase": "train", "step": step, "split": split, "loss": 1.0, metric: value}
            for step, value in ((500, 0.1 + 0.01 * seed), (1000, 0.05 + 0.01 * seed))
            for split in ("train", "valid")
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"seed": seed, "device": "cpu", "threads": 1, "host": "here", "started": "2026-01-01"}
    (folder / "meta.json").write_text(json.dumps({**given, "versions": {"torch": "2.15"}, **meta}))
    if status != "unfinished":
        result = {
            "task": task,
            "backbone": backbone,
            "method": "unused",
            "seed": seed,
            "steps": 1000,
            "metric": metric,
            "test": test if status == "finished" else None,
            "status": status,
            "seconds": seconds,
            "seconds_by_part": {"base": seconds / 4, "meta": seconds / 2, "other": seconds / 4},
            "peak_memory_bytes": 2**30,
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_methods(root: Path, seeds: int, bindings=(), pair="mnist_lenet5") -> Path:
    """The four methods, AdaLFL the best of them under every seed."""
    noise = np.random.default_rng(0)
    for i, method in enumerate(("adalfl_letter", "ml3_letter", "meta_lr_letter", "baseline")):
        for seed in range(seeds):
            test = 0.010 + 0.001 * i + 0.0004 * float(noise.random())
            files = (f"tasks/{pair}.gin", f"methods/{method}.gin")
            write_run(root / pair / method / f"seed{seed}", files, bindings, seed, test)
    return root

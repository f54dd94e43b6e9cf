"""What README says works."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_loop_of_the_readme_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "steps=2500" in block
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_loader": [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(3)],
        "valid_loader": [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(3)],
    }
    before = [p.detach().clone() for p in model.parameters()]
    exec(block.replace("steps=2500", "steps=2"), names)
    assert not any(p.equal(q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_files_that_the_readme_names_are_there():
    for kind, row in (("tasks", "tasks"), ("methods", "methods")):
        line = next(line for line in README.splitlines() if line.startswith(f"| {row} |"))
        for name in re.findall(r"`([a-z0-9_]+)`", line):
            assert (ROOT / "gin_configs" / kind / f"{name}.gin").is_file(), name
    for link in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_commands_of_the_readme_are_targets():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile

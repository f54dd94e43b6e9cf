"""What tests of several rooms share: places, tools, small problems and small runs."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss import links
from metaloss.engines.base import Engine, engine_by
from metaloss.machine import sealed
from metaloss.problem.batches import Batch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.runs import inspection, launch, pictures, run
from metaloss.runs.callbacks.base import Look
from metaloss.runs.state import State

ROOT = Path(__file__).parent.parent

#: Of a result.json, what differs between two runs that are otherwise equal.
COSTS = ("seconds", "seconds_by_part", "peak_memory_bytes")

#: A learned loss of 24 parameters, recorded at steps 0, 1, 4 and 20, as format 1 was written.
FORMAT_1 = ROOT / "tests" / "exports" / "format1"


def tool(name: str) -> ModuleType:
    """A file of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- a small problem ---


def make_problem(
    model: Callable[[], nn.Module],
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    loss: Callable[[], nn.Module],
) -> Problem:
    """Classification from seed 0."""
    torch.manual_seed(0)
    network = model()
    return Problem(
        network, optimizer(network.parameters()), loss(), F.cross_entropy, links.probabilities
    )


def make_batches(
    count: int, size: int, *shape: int, classes: int = 3, seed: int = 1
) -> list[Batch]:
    """So many batches of `size` examples of a shape, with labels, made up from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, *shape, generator=generator),
            torch.randint(classes, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def flat(gradients: Iterable[Tensor | None], phi: Iterable[Tensor]) -> Tensor:
    """One vector of the gradients by parameters; None is zero."""
    pairs = zip(gradients, phi, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def meta_gradient(
    problem: Problem, batches: Sequence[Batch], warm: int, engine: Engine | str
) -> Tensor:
    """∇_φ of the task loss on the last batch, through the steps after the `warm` ones."""
    *train, valid = batches
    for batch in train[:warm]:
        problem.base_step(batch)
    torch.manual_seed(2)
    found = engine_by(engine).hypergradient(
        problem, MetaParameters(problem), train[warm:], lambda: valid
    )
    return flat(found.phi, problem.phi)


def relative(a: Tensor, b: Tensor) -> float:
    """The distance of a from b, by the length of b."""
    return float((a - b).norm() / b.norm())


# --- a small run ---

QUICK = (
    "Runner.steps = 14",
    "Runner.log_every = 3",
    "Runner.evaluate_every = 5",
    "Runner.checkpoint_every = 4",
    "Runner.samples = 4",
    "Runner.figures = 2",
    "tasks.digits.batch_size = 16",
    "backbones.mlp.hidden = (8,)",
    "Runner.on_unhealthy = 'warn'",  # a loss of so short an initialisation fails its trial
)
#: An initialisation of nine meta-steps.
SHORT = (
    "meta_optimizers.task_fit.steps = 3",
    "meta_optimizers.offline_unrolled.steps = 6",
    "meta_optimizers.offline_unrolled.scale_steps = 2",
    "meta_optimizers.offline_unrolled.inner_steps = 2",
)
METHODS = {
    "baseline": (),
    "ml3": SHORT,
    "adalfl": (
        *SHORT,
        "meta_optimizers.online_one_step.every = 2",
        "base_optimizers.sgd.momentum = 0.9",
    ),
    "meta_lr": (
        "meta_optimizers.offline_unrolled.steps = 9",
        "meta_optimizers.offline_unrolled.scale_steps = 2",
        "meta_optimizers.offline_unrolled.inner_steps = 2",
        "meta_optimizers.online_one_step.every = 2",
    ),
}


def train(folder: Path, method: str = "adalfl", extra: Iterable[str] = (), **flags) -> int:
    """A run of a method on digits, of 9 and 14 steps; -> its exit code.

    Args:
        extra: bindings, which may replace those of the run.
        flags: of `launch.train`.
    """
    return launch.train(
        gin_file=["tasks/digits_mlp.gin", f"methods/{method}.gin"],
        gin_param=[*QUICK, *METHODS[method], *extra],
        output_dir=str(folder),
        device="cpu",
        **flags,
    )


def said(error: str) -> list[str]:
    """The lines that a run has said on stderr: without their times, from the level on."""
    return [re.sub(r"^\d{4}(-\d\d){2} \d\d(:\d\d){2} ", "", line) for line in error.splitlines()]


class Killed(BaseException):
    """As the kernel does it: no handler of ours runs."""


@contextmanager
def killed_when(reached: Callable[[State], bool]) -> Iterator[None]:
    """Within it a run must be killed: after the first step that reaches a state."""
    record = run.Run._record

    def die(self: run.Run, *arguments: Any) -> None:
        record(self, *arguments)
        if reached(self.state):
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run.Run, "_record", die)
        yield


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without its wall-clock fields."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two nested values are not the same, to the bit; [] where they are."""
    if torch.is_tensor(one):
        return [] if torch.is_tensor(other) and one.equal(other) else [name]
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return [f"{name}: the keys"]
        return [d for key in one for d in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, (list, tuple)):
        if type(one) is not type(other) or len(one) != len(other):
            return [f"{name}: the length"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, pair in pairs for d in differences(*pair, f"{name}.{i}")]
    return [] if one == other else [name]


def assert_same_state(one: Path, other: Path) -> None:
    """Equal θ, φ, optimizers, streams and counters of two run folders; the clock aside."""
    saved = [sealed.load(folder / "checkpoint.pt") for folder in (one, other)]
    for checkpoint in saved:
        del checkpoint["callbacks"]  # files that are named by the clock
    found = differences(*saved)
    timed = (".state.seconds", ".state.parts", ".metrics_bytes")  # the clock, and its digits
    assert all(name.startswith(timed) for name in found), found


# --- what a tracker has written ---


def written_by_wandb(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, each a protocol buffer."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part = path.read_bytes(), 7, b""
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(part)
            part = b""


# --- pictures ---


def sketch(path: Path, title: str, names: object = None, result: object = None) -> list[Path]:
    """In place of `pictures.draw`: two files, in the way that a run writes its figures."""
    return pictures._save(path / "figures", {"one.png": b"small", "other.png": b"smaller"})


#: Drawing, and what stands in its place in all tests that are not marked `pictures`.
SKETCHES = (
    (pictures, "draw", sketch),
    (inspection, "look_at_curves", lambda loss, trajectory, columns, step: Look(step)),
)
_DRAWING = [(module, name, getattr(module, name)) for module, name, _ in SKETCHES]


@contextmanager
def drawn() -> Iterator[None]:
    """Within it runs draw all their pictures, however short they are."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in _DRAWING:
            patch.setattr(module, name, function)
        patch.setattr(run, "LONG", 0.0)
        yield


def thinned(product: Iterable[tuple], keep: Callable[..., Any]) -> list:
    """The cases of a product; those that `keep` does not hold of are left to the full run."""
    return [pytest.param(*case, marks=() if keep(*case) else pytest.mark.full) for case in product]

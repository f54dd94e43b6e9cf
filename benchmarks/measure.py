"""Measures contenders on one pair: time and peak tensor memory of a step.

All start from the same weights and see the same batches. They take turns within one run, and a
ratio is the median over the turns of (its time / the baseline's time in the same round), so that
what slows the machine down for a while slows both down. A turn is as many steps as take a tenth of
a second: in a training each step finds the caches as the step before left them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from benchmarks.allocations import peak_bytes
from benchmarks.contenders import CONTENDERS, Contender, Step
from benchmarks.pairs import PAIRS, Pair
from benchmarks.plain_network import PlainNetwork
from metaloss.machine import memory
from metaloss.problem.batches import Batch
from metaloss.representations.nn import NN

#: What times are read from: `perf_counter`, or `process_time`, which other processes do not change.
Clock = Callable[[], float]


TURN = 0.1  #: seconds that a turn takes, about; longer where a step does


@dataclass
class Row:
    """What was found of one contender on one pair."""

    model: str
    batch_size: int
    contender: str
    milliseconds: float | None = None  #: of a step; the median over the turns
    ratio: float | None = None  #: to the baseline's step; the median over the turns
    peak_bytes: int | None = None  #: of a turn, above what was there before it; None: not known
    turns: int = 0
    note: str = ""  #: why there are no numbers


@dataclass
class Entrant:
    """A contender in a run."""

    row: Row
    contender: Contender
    step: Step
    steps: int  #: in a turn
    times: list[float] = field(default_factory=list)  #: of a step, by turn
    beside: list[float] = field(default_factory=list)  #: of the baseline's step, in the same round

    def turn(self, train: Batch, valid: Batch) -> None:
        """As many steps as a turn is."""
        for _ in range(self.steps):
            self.step(train, valid)

    def wants_a_turn(self, turns: int | None, seconds: float) -> bool:
        """Whether it has not had its turns; or where their number is open, its share of time."""
        made = len(self.times)
        if turns is not None:
            return made < turns
        return not made or sum(self.times) * self.steps < seconds


def measure(
    model: str,
    contenders: Sequence[str],
    device: torch.device,
    *,
    seconds: float,
    turns: int | None = None,
    clock: Clock = time.perf_counter,
    batch_size: int | None = None,
    pair: Pair | None = None,
) -> list[Row]:
    """One row for each contender, in their order.

    Args:
        model: a name in `PAIRS`, or another one for `pair`.
        contenders: names in `CONTENDERS`; "baseline" comes first.
        device: where.
        seconds: of measured time, divided among the contenders; each has a turn at least.
        turns: how many each has, instead.
        clock: what times are read from.
        batch_size: of all batches; None takes the pair's.
        pair: what is measured under that name, where it is none of `PAIRS`.
    """
    assert contenders[0] == "baseline"
    pair = PAIRS[model] if pair is None else pair
    if batch_size is not None:
        pair = replace(pair, batch_size=batch_size)
    torch.manual_seed(0)
    theta, phi = pair.model().to(device), NN().to(device)
    rows, entrants = [], []
    for name in contenders:
        contender = CONTENDERS[name]
        row = Row(model, pair.batch_size, name)
        rows.append(row)
        if contender.recorded and device.type != "cuda":
            row.note = "needs a GPU"
            continue
        loss = PlainNetwork(phi) if contender.plain_network else deepcopy(phi)
        try:
            step = contender.start(deepcopy(theta), loss, pair.task_loss)
        except ModuleNotFoundError as error:
            if contender.package is None or error.name != contender.package:
                raise
            row.note = "not installed (pip install 'metaloss[benchmark]')"
            continue
        entrants.append(Entrant(row, contender, step, contender.steps))

    for entrant in entrants:
        entrant.step(pair.draw(device), pair.draw(device))  # warm-up: optimizers make their states
        if entrant.contender.compiled and device.type == "cpu":
            batches = pair.draw(device), pair.draw(device)
            entrant.turn(*batches)  # compiles
            entrant.row.peak_bytes = peak_bytes(partial(entrant.turn, *batches))
        else:
            with memory.measuring(device) as measured:
                # Of recorded steps the second is recorded, and the third replayed.
                for _ in range(3 if entrant.contender.recorded else 1):
                    entrant.turn(pair.draw(device), pair.draw(device))
            entrant.row.peak_bytes = measured.peak_bytes
        took = time_of_step(entrant, pair.draw(device), pair.draw(device), device, clock)
        entrant.steps *= max(1, round(TURN / (took * entrant.steps)))

    share = seconds / len(entrants)
    baseline = entrants[0]
    while eager := [e for e in entrants if e.wants_a_turn(turns, share)]:
        train, valid = pair.draw(device), pair.draw(device)
        for entrant in eager if baseline in eager else [baseline, *eager]:
            entrant.times.append(time_of_step(entrant, train, valid, device, clock))
            entrant.beside.append(baseline.times[-1])
    for entrant in entrants:
        pairs = zip(entrant.times, entrant.beside, strict=True)
        entrant.row.milliseconds = 1e3 * statistics.median(entrant.times)
        entrant.row.ratio = statistics.median(own / beside for own, beside in pairs)
        entrant.row.turns = len(entrant.times)
    return rows


def time_of_step(
    entrant: Entrant, train: Batch, valid: Batch, device: torch.device, clock: Clock
) -> float:
    """Seconds of a step, the mean over one turn, the device's work included."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = clock()
    entrant.turn(train, valid)
    synchronize()
    return (clock() - start) / entrant.steps

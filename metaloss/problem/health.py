"""Health: whether a learned loss works, by what it does beside the task loss.

A loss is probed on a batch now and then: its slope ∂M_φ/∂z by the model's outputs beside ∂L_T/∂z,
and the task loss beside that of a constant prediction. At the end of an initialisation it is put
on trial: some base steps on it from a fresh θ, beside as many on the task loss.

The thresholds stand between what nine healthy trainings showed (logistic regression, LeNet-5 and
MLPs, in classification and regression) and what losses did that were spoilt on purpose: scaled by
30, of the other sign, or constant.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from metaloss import links
from metaloss.base_optimizers.base import reset
from metaloss.machine import distributed, seeding
from metaloss.problem import batches, snapshot
from metaloss.problem.batches import StepBatch
from metaloss.problem.problem import Problem
from metaloss.problem.shards import Shards

PROBES = 3  #: whose median is judged: one batch alone says little
COSINE = 0.1  #: least cosine of both slopes; healthy losses have .5 and more
HIGH = 0.5  #: part of a constant prediction's task loss, above which much is left to learn
COSINE_WHILE_HIGH = 0.5  #: least cosine then: later a few wrong examples, or noise, decide it
BAND = 10.0  #: the scale may be so many times larger or smaller than it was at the start
FOLLOW = 0.05  #: how far the start's scale follows a healthy loss's at each probe, in its logarithm
TASK_LOSS = 1.5  #: most task loss, in that of a constant prediction
EARLY = 50  #: base steps in which the task loss may be anything
FITTED = 0.02  #: below this part of a constant's task loss nothing is left to learn, nor to judge
SHARE = 0.5  #: least share of the task loss's own fall that a trial has to reach
TRIAL_STEPS = 100  #: base steps of a trial, at least
TRIAL_BATCHES = 4  #: batches that it is judged on
FALL = 0.02  #: a trial in which the task loss itself falls by less, relatively, says nothing

#: What a probe measures, in this order.
MEASURED = ("cosine", "ratio", "task_loss", "constant_loss")


@dataclass(frozen=True)
class Health:
    """How a learned loss stands beside the task loss.

    Attributes:
        status: "healthy"; "unhealthy", if one of the latest probes' rules, or the trial, says so;
            "unknown", if there were fewer than three probes and no trial; or "task_loss", if the
            training has fallen back on it.
        warnings: all troubles found so far, in plain words, in their order.
        numbers: "cosine" and "ratio" of ∂M_φ/∂z to ∂L_T/∂z (of their norms), the "task_loss" and
            the "constant_loss" of a constant prediction: medians of the latest probes; "share" of
            the trial (see `trial`). Of a batch that was given, its own, and "cosine_theta" and
            "ratio_theta", the same by the parameters θ: no rule is made of these, since healthy
            losses that over-fit have negative cosines there.
    """

    status: str
    warnings: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


class Watch:
    """What was seen of one learned loss, and what to think of it.

    Args:
        tried: its trial, if there was one.
        warnings: of what was there before it.

    Attributes:
        failed: whether the trial found trouble, or probes did a second time.
        warnings: troubles found so far, in plain words.
        share: of the trial, see `trial`; None without one.
        phis: φ at the latest probes that found no trouble, from the oldest; the first is from
            before the trouble, which only the median of several shows.
        rows: labels seen so far.
        target: their mean as the link gives it, [C]; see `constant_loss`.
    """

    def __init__(self, tried: Trial | None = None, warnings: Sequence[str] = ()) -> None:
        self.warnings = list(warnings)
        self.share = None if tried is None else tried.share
        self.phis: list[list[Tensor]] = []
        self.rows = 0
        self.target: Tensor | None = None
        self.failed = tried is not None and tried.trouble is not None
        if tried is not None and tried.trouble is not None:
            self.warnings.append(tried.trouble)
        self._seen: list[list[float]] = []  # the latest probes
        self._reference = None if tried is None else tried.ratio
        self._constants, self._constant = 0, 0.0  # mean task loss of a constant prediction
        self._told: list[str] = []
        self._now: list[str] = []  # what is wrong at the latest probes

    def judge(self, step: int, seen: Sequence[float]) -> list[str]:
        """Takes a probe in; gives the troubles of kinds that were not told before.

        Args:
            step: base steps made so far.
            seen: as `MEASURED` names them.
        """
        self._seen = [*self._seen, [float(number) for number in seen]][-PROBES:]
        constant = self._seen[-1][-1]
        if math.isfinite(constant):
            self._constants += 1
            self._constant += (constant - self._constant) / self._constants
        troubles = self._troubles(step)
        self._now = sorted(troubles)
        new = [f"step {step}: {troubles[kind]}" for kind in troubles if kind not in self._told]
        self._told += [kind for kind in troubles if kind not in self._told]
        self.warnings += new
        return new

    @property
    def well(self) -> bool:
        """Whether the latest probes, of which there are enough, show no trouble."""
        return len(self._seen) == PROBES and not self._now

    def health(self) -> Health:
        """What is known so far."""
        enough = len(self._seen) == PROBES
        if self._now or (self.failed and not enough):
            status = "unhealthy"
        else:
            status = "healthy" if enough or self.share is not None else "unknown"
        return Health(status, tuple(self.warnings), self.numbers())

    def numbers(self) -> dict[str, float]:
        """Medians of the latest probes, and the trial's share; what there is of them."""
        found = {} if self.share is None else {"share": self.share}
        if self._seen:
            found |= {name: self._median(i) for i, name in enumerate(MEASURED)}
        return found

    def _troubles(self, step: int) -> dict[str, str]:
        """What is wrong at the latest probes, by its kind."""
        latest = self._seen[-1]
        if not (math.isfinite(latest[0]) and math.isfinite(latest[2])):
            return {"not_finite": "the learned loss, its slope or the task loss is not finite"}
        if len(self._seen) < PROBES:
            return {}
        cosine, ratio, task_loss, _ = map(self._median, range(len(MEASURED)))
        found = {}
        if step > EARLY and task_loss > TASK_LOSS * self._constant:
            found["task_loss"] = (
                f"the task loss is {task_loss:.3g}, where a constant prediction has "
                f"{self._constant:.3g}"
            )
        if task_loss < FITTED * self._constant:
            return found
        if cosine < COSINE:
            found["cosine"] = (
                "the learned loss does not go the task loss's way: the cosine of their slopes by "
                f"the outputs is {cosine:.2g}"
            )
        elif step > EARLY and cosine < COSINE_WHILE_HIGH and task_loss > HIGH * self._constant:
            found["stuck"] = (
                f"the task loss is still {task_loss:.3g}, where a constant prediction has "
                f"{self._constant:.3g}, and the learned loss does little about it: the cosine of "
                f"their slopes by the outputs is {cosine:.2g}. A loss of probabilities has no "
                "slope where that of the true class is near 0"
            )
        if self._reference is None:
            self._reference = ratio if ratio > 0 else None
        elif not self._reference / BAND <= ratio <= self._reference * BAND:
            found["ratio"] = (
                f"the scale of the learned loss is {ratio / self._reference:.3g} times what it "
                "was, and so is the effective learning rate"
            )
        elif not found:
            self._reference *= (ratio / self._reference) ** FOLLOW
        return found

    def _median(self, index: int) -> float:
        """Of the latest probes; one that is not finite is as bad as can be."""
        values = [seen[index] for seen in self._seen]
        return statistics.median([v if math.isfinite(v) else math.inf for v in values])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        vars(self).update(copy.deepcopy(state))


def probe(problem: Problem, batch: StepBatch, watches: Sequence[Watch]) -> list[list[float]]:
    """Looks at the learned loss on a batch; model, gradients and generators stay as they are.

    One forward pass without a graph through θ; the device is waited for once, and once more where
    rows may not count.

    Args:
        batch: of MicroBatches the one is looked at whose rows weigh most.
        watches: of the problem; of a stack of problems, of each.

    Returns:
        Of each watch the numbers that `MEASURED` names; nothing where no row of it counts.
    """
    inputs, labels = max(batches.parts(batch), key=lambda part: float(problem.weight(part)))
    if not _counts(problem, (inputs, labels)):
        return []
    random_state = seeding.global_state(problem.device)
    with torch.no_grad(), problem.replaced({}, problem.surroundings.keep()):
        outputs = problem.forward(inputs)
    seeding.set_global_state(random_state, problem.device)
    g, h, task_loss = slopes(problem, outputs, labels)
    dims = tuple(range(task_loss.dim(), g.dim()))
    squares = [(g * g).sum(dims), (h * h).sum(dims), (g * h).sum(dims), task_loss]
    constant = constant_loss(problem, outputs, labels, watches)
    numbers = torch.stack([*squares, constant.to(task_loss)])
    numbers = distributed.mean_beside([], [], [numbers], problem.weight((inputs, labels)))[1][0]
    rows = numbers.reshape(5, len(watches)).T.tolist()
    return [[*_compared(gg, hh, gh), *losses] for gg, hh, gh, *losses in rows]


def _compared(gg: float, hh: float, gh: float) -> tuple[float, float]:
    """Cosine of two vectors and ratio of their norms, by their products; NaN spreads."""
    if gg == 0 or hh == 0:
        return 0.0, 0.0 if gg == 0 else math.inf
    return gh / (math.sqrt(gg) * math.sqrt(hh)), math.sqrt(gg) / math.sqrt(hh)


def slopes(problem: Problem, outputs: Tensor, labels: Any) -> tuple[Tensor, Tensor, Tensor]:
    """∂M_φ/∂z and ∂L_T/∂z, of the outputs' shape, and L_T; none has a graph."""
    with problem.descending_task_loss(False):
        g = problem.slope(outputs, labels, None, graph=False, glance=True).hand_out()
    free = outputs.detach().requires_grad_()
    task_loss = problem.task_loss(free, labels)
    (h,) = torch.autograd.grad(task_loss.sum(), free, materialize_grads=True)
    return g, h, task_loss.detach()


def of_batch(problem: Problem, batch: StepBatch) -> dict[str, float]:
    """What `Health.numbers` has of one batch, by the outputs and by the parameters."""
    inputs, labels = batches.parts(batch)[0]
    random_state = seeding.global_state(problem.device)
    with problem.replaced({}, problem.surroundings.keep()):
        outputs = problem.forward(inputs)
        g, h, task_loss = slopes(problem, outputs, labels)
        cosine_theta, ratio_theta = _by_theta(problem, inputs, outputs, g, h)
    seeding.set_global_state(random_state, problem.device)
    cosine, ratio = _of_vectors(g, h)
    constant = constant_loss(problem, outputs.detach(), labels, [Watch()])
    return {
        "cosine": cosine,
        "ratio": ratio,
        "task_loss": float(task_loss),
        "constant_loss": float(constant),
        "cosine_theta": cosine_theta,
        "ratio_theta": ratio_theta,
    }


def by_parameters(problem: Problem, batch: StepBatch, size: int = 16) -> tuple[float, float]:
    """Cosine and ratio of norms of ∇_θ M_φ and ∇_θ L_T: medians over parts of a batch.

    A model that has learned most of its examples has its gradient from the few wrong ones; in the
    median over small parts these have no more say than others. The batch is this process's own.

    Args:
        size: examples in a part.
    """
    inputs, labels = batches.parts(batch)[0]
    found = []
    random_state = seeding.global_state(problem.device)
    for start in range(0, batches.examples((inputs, labels)), size):
        cut = itemgetter(slice(start, start + size))
        part = tree_map_only(Tensor, cut, (inputs, labels))
        with problem.replaced({}, problem.surroundings.keep()):
            outputs = problem.forward(part[0])
            g, h, _ = slopes(problem, outputs, part[1])
            found.append(_by_theta(problem, part[0], outputs, g, h))
    seeding.set_global_state(random_state, problem.device)
    cosines, ratios = zip(*found, strict=True)
    return statistics.median(cosines), statistics.median(ratios)


def _by_theta(
    problem: Problem, inputs: Any, outputs: Tensor, g: Tensor, h: Tensor
) -> tuple[float, float]:
    """Cosine and ratio of two slopes by the outputs, taken back to θ."""
    if problem.shards is not None:
        return _by_shards(problem, problem.shards, inputs, g, h)
    through = [
        torch.autograd.grad(outputs, problem.theta, s, retain_graph=True, allow_unused=True)
        for s in (g, h)
    ]
    return _of_vectors(*(torch.cat([p.flatten() for p in ps if p is not None]) for ps in through))


def _by_shards(
    problem: Problem, shards: Shards, inputs: Any, g: Tensor, h: Tensor
) -> tuple[float, float]:
    """The same of a sharded θ: each slope by a pass of its own, over all processes' examples."""
    examples = len(g)
    through = [shards.backward(problem.forward(inputs), s, examples) for s in (g, h)]
    gs, hs = (torch.cat([p.flatten() for p in ps if p is not None]) for ps in through)
    sums = distributed.total([torch.stack([(gs * gs).sum(), (hs * hs).sum(), (gs * hs).sum()])])
    return _compared(*sums[0].tolist())


def _of_vectors(g: Tensor, h: Tensor) -> tuple[float, float]:
    return _compared(float((g * g).sum()), float((h * h).sum()), float((g * h).sum()))


@torch.no_grad()
def constant_loss(
    problem: Problem, outputs: Tensor, labels: Any, watches: Sequence[Watch]
) -> Tensor:
    """The task loss of a constant prediction: what is reached without looking at the inputs.

    The best of three: the mean target of all labels that the watches have seen, these among them,
    its logarithm (the best constant logits of cross-entropy) and its logit (of several labels at
    once). The entropy of the labels' shares, or their variance, but for chance.

    Args:
        outputs: for their shape.
        watches: count the labels.
    """
    _, target, *weights = problem.link(outputs, labels)
    rows = target.shape[-2]
    mean = links.mean(target.mT, *(w.unsqueeze(-2) for w in weights))  # [S, C]
    mean = mean.nan_to_num().reshape(len(watches), -1)  # where no row counts, of no matter
    mean = distributed.mean_beside([], [], [mean], rows)[1][0]
    for watch, own in zip(watches, mean, strict=True):
        if watch.target is None or watch.target.shape != own.shape:
            watch.rows, watch.target = 0, own
        watch.rows += rows
        watch.target = watch.target + (own - watch.target) * (rows / max(watch.rows, 1))
    pooled = torch.stack([watch.target for watch in watches if watch.target is not None])
    tiny = 0.5 / max(1, min(watch.rows for watch in watches))
    candidates = (pooled, pooled.clamp_min(tiny).log(), pooled.clamp(tiny, 1 - tiny).logit())
    losses = [
        problem.task_loss(_everywhere(row, outputs, problem, target.dim() - 2), labels)
        for row in candidates
    ]
    return torch.stack(losses).nan_to_num(math.inf).amin(0)


def _everywhere(row: Tensor, outputs: Tensor, problem: Problem, lead: int) -> Tensor:
    """Outputs that are the same for all examples; of rows [S, C] in which the classes stand."""
    if outputs.dim() == lead + 1:
        return row.reshape(*outputs.shape[:lead], -1)[..., :1].expand_as(outputs)
    place = getattr(problem.link, "class_dim", 1)
    place = place + lead if place >= 0 else outputs.dim() + place
    if outputs.shape[place] != row.shape[-1]:  # a link of one's own, which arranges them otherwise
        return torch.zeros_like(outputs)
    shape = [*outputs.shape[:lead], *[1] * (outputs.dim() - lead)]
    shape[place] = row.shape[-1]
    return row.to(outputs).reshape(shape).expand_as(outputs)


@dataclass(frozen=True)
class Trial:
    """What a trial has shown.

    Attributes:
        share: how far the task loss fell, in its fall by base steps on the task loss itself; None
            where that does not fall either.
        ratio: of the norms of ∂M_φ/∂z and ∂L_T/∂z at its end; None if it is no positive number.
        trouble: what is wrong, in plain words.
    """

    share: float | None
    ratio: float | None
    trouble: str | None


def trial(
    problem: Problem,
    draw_train: Callable[[], StepBatch],
    draw_objective: Callable[[], StepBatch],
    redraw: Callable[[], None],
    steps: int,
) -> Trial:
    """Base steps on the learned loss as it is, from a θ drawn anew, and as many on the task loss.

    Both judged by the task loss on the same batches; then model, optimizer and generators are as
    before.
    """
    judged: Sequence[StepBatch] = [draw_objective() for _ in range(TRIAL_BATCHES)]
    ends, ratios = [], []
    with snapshot.on_trial(problem, judged[0]):
        judged = that_count(problem, judged)
        redraw()
        reset(problem.optimizer)
        fresh = snapshot.take(problem)
        start = mean_task_loss(problem, judged)
        for by_task_loss in (False, True):
            snapshot.put_back(problem, fresh)
            reset(problem.optimizer)
            with problem.descending_task_loss(by_task_loss):
                for _ in range(steps):
                    problem.plain_step(draw_train())
            ends.append(mean_task_loss(problem, judged))
            if not by_task_loss:
                ratios = [seen[1] for b in judged for seen in probe(problem, b, [Watch()])]
    end, end_of_task = ends
    ratio = statistics.median([r if math.isfinite(r) else math.inf for r in ratios or [math.inf]])
    usable = ratio if 0 < ratio < math.inf else None
    fall = start - end_of_task
    share = (start - end) / fall if fall > FALL * abs(start) and math.isfinite(end) else None
    trouble = None
    if not math.isfinite(end):
        trouble = f"the model diverged within {steps} base steps on the learned loss"
    elif usable is None:
        trouble = "the learned loss has no slope by the model's outputs: it moves no parameter"
    elif share is not None and share < SHARE:
        trouble = (
            f"{steps} base steps on the learned loss took the task loss from {start:.3g} to "
            f"{end:.3g}, and as many on the task loss to {end_of_task:.3g}"
        )
    elif share is None and end > TASK_LOSS * start:
        trouble = (
            f"{steps} base steps on the learned loss took the task loss from {start:.3g} up to "
            f"{end:.3g}"
        )
    return Trial(share, usable, trouble)


def _counts(problem: Problem, batch: StepBatch) -> bool:
    """Whether any row of a batch counts, in this process or in another one."""
    return distributed.anywhere(bool(problem.weight(batch)))


def that_count(problem: Problem, drawn: Sequence[StepBatch]) -> Sequence[StepBatch]:
    """Those of some batches in which a row counts; all, where none does in any."""
    return [batch for batch in drawn if _counts(problem, batch)] or drawn


def mean_task_loss(problem: Problem, judged: Sequence[StepBatch]) -> float:
    """L_T at the current θ, the mean over batches."""
    return statistics.fmean(float(snapshot.task_loss(problem, batch)) for batch in judged)

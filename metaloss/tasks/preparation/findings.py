"""Findings: what looks wrong with a task's data, a line each, before anybody trains on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from metaloss.tasks.base import CLASSIFICATION, Data
from metaloss.tasks.preparation.encoding import Encoding
from metaloss.tasks.preparation.streams import Stream

TELLING = 0.99  #: of the labels that one input must give away to be suspicious
LOOKED_AT = 20_000  #: training examples at most
FEW = 10  #: examples of a class


def found(data: Data) -> list[str]:
    """All that is found, after the sizes of splits and classes."""
    sizes = ", ".join(f"{split} {len(y):,}" for split, (_, y) in data.splits.items())
    lines = [f"{sizes}; inputs {list(data.input_shape)}, {data.outputs} outputs"]
    lines += _classes(data) + list(_duplicates(data))
    if not isinstance(data.splits["train"][0], Stream) and len(data.input_shape) == 1:
        lines += list(_inputs(data))
    return lines


def _classes(data: Data) -> list[str]:
    """How many examples each class has, and which has few."""
    if data.objective is not CLASSIFICATION:
        return []
    names = data.classes or tuple(map(str, range(data.outputs)))
    counts = {
        split: torch.bincount(y.cpu(), minlength=data.outputs)
        for split, (_, y) in data.splits.items()
    }
    total = torch.stack(list(counts.values())).sum(0)
    order = total.argsort(descending=True, stable=True).tolist()
    shown = ", ".join(f"{names[i]} {int(total[i]):,}" for i in order[:20])
    more = f", and {len(order) - 20:,} more" if len(order) > 20 else ""
    lines = [f"{len(order)} classes: {shown}{more}"]
    few = [names[i] for i in order if counts["train"][i] < FEW]
    if few:
        words = ", ".join(few[:5])
        lines.append(f"look: {len(few)} classes have fewer than {FEW} training examples ({words})")
    for split in ("valid", "test"):
        absent = [names[i] for i in order if not counts[split][i]]
        if absent:
            words = ", ".join(absent[:5])
            lines.append(f"look: {len(absent)} classes have no {split} example ({words})")
    if total.max() > 0.95 * total.sum():
        share = float(total.max() / total.sum())
        lines.append(f"look: {share:.1%} of all examples are of the class {names[order[0]]}")
    return lines


def _duplicates(data: Data) -> Iterator[str]:
    """Examples that stand in two splits."""
    if any(isinstance(x, Stream) for x, _ in data.splits.values()):
        yield "not looked at, since it would read every file: examples that stand in two splits"
        return
    marks = {
        split: [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x.cpu().numpy()]
        for split, (x, _) in data.splits.items()
    }
    sets = {split: set(of_split) for split, of_split in marks.items()}
    for split, other in (("valid", "train"), ("test", "train"), ("test", "valid")):
        shared = sum(mark in sets[other] for mark in marks[split])
        if shared:
            count = len(marks[split])
            yield f"look: {shared:,} of {count:,} {split} examples stand in {other} too"
    twice = len(marks["train"]) - len(sets["train"])
    if twice:
        yield f"look: {twice:,} of {len(marks['train']):,} training examples stand there before"


def _inputs(data: Data) -> Iterator[str]:
    """Columns that say nothing, or too much."""
    x, y = (tensor[:LOOKED_AT].cpu() for tensor in data.splits["train"])
    places = _columns(data.encoding, x.shape[1])
    for name, columns in places.items():
        values = x[:, columns]
        if (values == values[:1]).all():
            yield f"look: {name} is the same in every training row"
            continue
        kinds, inverse = torch.unique(values, dim=0, return_inverse=True)
        if data.objective is CLASSIFICATION:
            share, usual = 0.0, torch.bincount(y).max().item() / len(y)
            if len(kinds) < len(y) / 2:
                share = _share_of_classes(inverse, len(kinds), y, data.outputs)
            share = max(share, _share_by_threshold(values, y))
            if share >= TELLING > usual:
                yield f"look: {name} alone gives {share:.1%} of the labels away: would it be known?"
        elif values.shape[1] == 1 and y.ndim == 2 and len(y) > 2:
            closest = _correlation(values[:, 0], y)
            if closest >= TELLING:
                follows = f"follows the target (correlation {closest:.3f})"
                yield f"look: {name} {follows}: would it be known?"
        if _counts_up(values, len(kinds)):
            yield f"look: {name} numbers the rows: is it a name, to be ignored?"


def _columns(encoding: Encoding | None, inputs: int) -> dict[str, slice]:
    """Which inputs each column became."""
    if encoding is None:
        return {f"input {i}": slice(i, i + 1) for i in range(inputs)}
    places, start = {}, 0
    for name, column in encoding.columns.items():
        places[f"column '{name}'"] = slice(start, start + len(column.inputs))
        start += len(column.inputs)
    return places


def _share_of_classes(inverse: torch.Tensor, kinds: int, y: torch.Tensor, classes: int) -> float:
    """Labels that one knows who knows the most frequent class of each value."""
    counts = torch.bincount(inverse * classes + y, minlength=kinds * classes).view(kinds, classes)
    return counts.amax(1).sum().item() / len(y)


def _share_by_threshold(values: torch.Tensor, y: torch.Tensor) -> float:
    """Labels that one knows by a number alone, cut into as few parts as there are classes."""
    if values.shape[1] != 1:
        return 0.0
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_leaf_nodes=max(2, int(y.max()) + 1), random_state=0)
    return float(tree.fit(values.numpy(), y.numpy()).score(values.numpy(), y.numpy()))


def _correlation(values: torch.Tensor, y: torch.Tensor) -> float:
    columns = np.concatenate([values.double()[:, None].numpy(), y.double().numpy()], 1)
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.abs(np.corrcoef(columns.T)[0, 1:])).max())


def _counts_up(values: torch.Tensor, kinds: int) -> bool:
    """Whether one number goes up, row by row, in about equal steps."""
    if values.shape[1] != 1 or kinds < len(values) or len(values) < 20:
        return False
    steps = values[:, 0].double().diff()
    return bool((steps > 0).all() and steps.max() < 40 * steps.median())

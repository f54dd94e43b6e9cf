"""Scores: what a model's outputs on a whole split are worth, beside loss and metric.

They are sums over the examples, computed here: the libraries that have them (torchmetrics,
scikit-learn, which the tests compare with) take seconds to import, and a run may last as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaloss.tasks.base import MULTI_LABEL, Objective

BINS = 15  #: of the confidence, as in Guo et al., On Calibration of Modern Neural Networks (2017)


@dataclass(frozen=True)
class Scores:
    """What one number does not say.

    Attributes:
        numbers: of classes "brier" (the squared distance of the probabilities from the one-hot
            label, summed over the classes: 0 to 2), "ece" (the expected calibration error),
            "macro_f1", "auc" (of each class against the rest, in the mean over those that are there
            and not alone), and "top5_error" where there are more than five classes; of several
            labels an example "brier" and "ece" in the mean over the labels, "macro_f1" and "auc";
            of values "r2", the mean over the outputs.
        recall: of each class, the share of its examples that are found; None: it has none.
        reliability: of each bin of confidence that is not empty its "confidence", "accuracy" and
            "count".
    """

    numbers: dict[str, float]
    recall: list[float | None] = field(default_factory=list)
    reliability: list[dict[str, Any]] = field(default_factory=list)


def scores(outputs: Tensor, labels: Tensor, objective: Objective) -> Scores:
    """The scores of a split.

    Args:
        outputs: of all examples, [n, C].
        labels: theirs: classes [n], several labels [n, C] or values [n, C].
        objective: of the task.

    Returns:
        None of them where an output is not finite.
    """
    if not bool(outputs.isfinite().all()):
        return Scores({})
    outputs = outputs.double()
    if objective.metric == "mse":
        return Scores({"r2": _r2(outputs, labels.double())})
    if objective is MULTI_LABEL:
        return _of_several_labels(outputs.sigmoid(), labels > 0.5)
    return _of_classes(outputs.softmax(-1), labels)


def _of_classes(probabilities: Tensor, labels: Tensor) -> Scores:
    """Of examples with one class each."""
    classes = probabilities.shape[-1]
    one_hot = F.one_hot(labels, classes)
    confidence, predicted = probabilities.max(-1)
    hit = predicted == labels
    reliability = _reliability(confidence, hit)
    numbers = {
        "brier": float((probabilities - one_hot).square().sum(-1).mean()),
        "ece": _calibration_error(reliability),
    }
    if classes > 5:
        in_five = (probabilities.topk(5).indices == labels[:, None]).any(-1)
        numbers["top5_error"] = float(1 - in_five.double().mean())
    numbers["auc"] = _auc(probabilities, one_hot.bool())
    found = F.one_hot(predicted, classes)
    f1, recall = _by_class(found.bool(), one_hot.bool())
    return Scores({**numbers, "macro_f1": f1}, recall, reliability)


def _of_several_labels(probabilities: Tensor, labels: Tensor) -> Scores:
    """Of examples of which each class may hold or not."""
    found = probabilities > 0.5
    confidence = torch.where(found, probabilities, 1 - probabilities)
    reliability = _reliability(confidence.flatten(), (found == labels).flatten())
    f1, recall = _by_class(found, labels)
    brier = float((probabilities - labels.double()).square().mean())
    numbers = {"brier": brier, "ece": _calibration_error(reliability), "macro_f1": f1}
    return Scores({**numbers, "auc": _auc(probabilities, labels)}, recall, reliability)


def _reliability(confidence: Tensor, hit: Tensor) -> list[dict[str, Any]]:
    """Mean confidence and accuracy in bins of equal width; those that are not empty."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype)
    bins = torch.bucketize(confidence, edges[1:-1])
    counts, confidences, hits = (
        torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, values.double())
        for values in (torch.ones_like(confidence), confidence, hit)
    )
    return [
        {"confidence": float(c / n), "accuracy": float(h / n), "count": int(n)}
        for n, c, h in zip(counts, confidences, hits, strict=True)
        if n
    ]


def _calibration_error(reliability: list[dict[str, Any]]) -> float:
    """The distance of confidence and accuracy, in the mean over the examples."""
    total = sum(row["count"] for row in reliability)
    gaps = (row["count"] * abs(row["confidence"] - row["accuracy"]) for row in reliability)
    return float(sum(gaps) / total)


def _by_class(found: Tensor, true: Tensor) -> tuple[float, list[float | None]]:
    """Macro F1, over the classes that are there or were predicted, and each class's recall."""
    both, predicted, there = ((x.double().sum(0)) for x in (found & true, found, true))
    counted = predicted + there > 0
    f1 = (2 * both / (predicted + there))[counted].mean()
    recall = [float(b / n) if n else None for b, n in zip(both, there, strict=True)]
    return float(f1), recall


def _auc(scores: Tensor, true: Tensor) -> float:
    """The area under the ROC curve in the mean over the classes; NaN where there is none.

    That a positive has a higher score than a negative, a tie being a half (Mann and Whitney).
    """
    found = []
    for own, holds in zip(scores.mT, true.mT, strict=True):
        positive, negative = own[holds], own[~holds].sort().values
        if len(positive) and len(negative):
            below = torch.searchsorted(negative, positive)
            upto = torch.searchsorted(negative, positive, right=True)
            found.append(float((below + upto).double().mean()) / (2 * len(negative)))
    return sum(found) / len(found) if found else float("nan")


def _r2(outputs: Tensor, labels: Tensor) -> float:
    """The share of the variance that is explained; NaN where the labels have none."""
    left = (outputs - labels).square().sum(0)
    return float((1 - left / (labels - labels.mean(0)).square().sum(0)).mean())

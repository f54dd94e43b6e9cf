"""Scores beside loss and metric: torchmetrics' and scikit-learn's values, and where they stand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaloss.runs.evaluation import examine
from metaloss.runs.scores import scores
from metaloss.tasks.base import CLASSIFICATION, MULTI_LABEL, REGRESSION, Data
from tests.helpers import rows, train


def made(seed, n, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), classes=st.integers(2, 9))
def test_of_classes_they_are_scikit_learns(seed, n, classes):
    logits, labels = made(seed, n, classes)
    found = scores(logits, labels, CLASSIFICATION)
    predicted, known = logits.argmax(-1).numpy(), labels.numpy()
    f1 = sklearn.metrics.f1_score(known, predicted, average="macro", zero_division=0)
    assert found.numbers["macro_f1"] == pytest.approx(f1)
    one_hot = torch.eye(classes)[labels]
    brier = (logits.double().softmax(-1) - one_hot).square().sum(-1).mean()
    assert found.numbers["brier"] == pytest.approx(float(brier))
    there = sorted(set(known.tolist()))
    recall = sklearn.metrics.recall_score(known, predicted, labels=there, average=None)
    assert [found.recall[k] for k in there] == pytest.approx(recall.tolist())
    assert all(found.recall[k] is None for k in set(range(classes)) - set(there))
    areas = [
        sklearn.metrics.roc_auc_score(known == k, logits.softmax(-1)[:, k])
        for k in there
        if len(there) > 1
    ]
    expected = sum(areas) / len(areas) if areas else math.nan
    assert found.numbers["auc"] == pytest.approx(expected, nan_ok=True)
    if classes > 5:
        top5 = sklearn.metrics.top_k_accuracy_score(known, logits, k=5, labels=range(classes))
        assert found.numbers["top5_error"] == pytest.approx(1 - top5)
    else:
        assert "top5_error" not in found.numbers
    assert sum(row["count"] for row in found.reliability) == n


@pytest.mark.full  # importing it takes seconds
def test_the_calibration_error_is_torchmetrics():
    calibration = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = made(0, 500, 10)
    expected = calibration.multiclass_calibration_error(
        logits.double().softmax(-1), labels, num_classes=10, n_bins=15, norm="l1"
    )
    found = scores(logits, labels, CLASSIFICATION).numbers["ece"]
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_a_model_that_knows_is_calibrated_and_one_that_boasts_is_not():
    labels = torch.arange(4).repeat(3)
    sure = 50 * torch.eye(4)[labels]
    assert scores(sure, labels, CLASSIFICATION).numbers == pytest.approx(
        {"brier": 0, "ece": 0, "macro_f1": 1, "auc": 1}, abs=1e-9
    )
    wrong = sure.roll(1, -1)
    assert scores(wrong, labels, CLASSIFICATION).numbers == pytest.approx(
        {"brier": 2, "ece": 1, "macro_f1": 0, "auc": 1 / 3}, abs=1e-9
    )


def test_of_several_labels_an_example():
    outputs = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, -0.5]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    found = scores(outputs, labels, MULTI_LABEL)
    f1 = sklearn.metrics.f1_score(labels > 0.5, outputs > 0, average="macro", zero_division=0)
    assert found.numbers["macro_f1"] == pytest.approx(f1)
    assert found.recall == [1, 1, 0]
    brier = (outputs.double().sigmoid() - labels).square().mean()
    assert found.numbers["brier"] == pytest.approx(float(brier))
    several = [k for k in range(3) if 0 < labels[:, k].sum() < len(labels)]
    areas = [sklearn.metrics.roc_auc_score(labels[:, k] > 0.5, outputs[:, k]) for k in several]
    assert found.numbers["auc"] == pytest.approx(sum(areas) / len(areas))


def test_of_values():
    outputs, labels = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0))
    expected = sklearn.metrics.r2_score(labels, outputs)
    assert scores(outputs, labels, REGRESSION).numbers == {"r2": pytest.approx(expected)}
    constant = scores(outputs, torch.ones(30, 3), REGRESSION).numbers["r2"]
    assert not math.isfinite(constant)


def test_outputs_that_are_not_finite_have_none():
    assert scores(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), CLASSIFICATION).numbers == {}


def test_an_objective_of_ones_own_has_errors_alone():
    """Its outputs may be of any shape: here a class for each of four places."""
    outputs, labels = torch.randn(6, 3, 4), torch.randint(3, (6, 4))

    def wrong_places(outputs, labels):
        return (outputs.argmax(1) != labels).float().mean(-1)

    own = replace(CLASSIFICATION, errors=wrong_places)
    data = Data({"test": (outputs, labels)}, 3, own)
    found = examine(torch.nn.Identity(), data, "test")
    assert found.numbers.keys() == {"loss", "error_rate"}
    assert found.scores.recall == found.scores.reliability == []
    assert found.errors.equal(wrong_places(outputs, labels))


def test_a_run_writes_them(tmp_path):
    assert train(tmp_path / "run", "baseline") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"brier", "ece", "macro_f1", "top5_error"} <= result["test_metrics"].keys()
    assert len(result["recall"]) == 10
    assert sum(row["count"] for row in result["reliability"]) == 360
    (row,) = [row for row in rows(tmp_path / "run") if row.get("split") == "test"]
    assert row["ece"] == result["test_metrics"]["ece"]

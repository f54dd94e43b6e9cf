"""Trivial references: what a constant and a linear model reach on the data of a run.

A learned loss, or any loss, on a network that is no better than these has shown nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaloss.runs.runner import Runner
from metaloss.tasks.base import Data, find_data_dir

#: Strengths of the penalty, of which ridge regression takes the best by leaving one row out.
PENALTIES = np.logspace(-3, 4, 15)
#: Inverse strengths for logistic regression, of which the validation split chooses.
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
CHUNK = 10_000


@dataclass(frozen=True)
class Reference:
    """What a simple model reaches.

    Attributes:
        name: of the model.
        errors: the task's metric of each test example, [n].
    """

    name: str
    errors: np.ndarray


def of_run(plan: Runner, data_dir: str | Path | None = None, seed: int = 0) -> list[Reference]:
    """The references on the data of a run.

    Args:
        plan: of which the task and the share to choose by count.
        data_dir: see `Task.load`; None: $METALOSS_DATA, or ./data.
        seed: decides the training rows.

    Raises:
        DataError: see `Task.load`.
    """
    return list(references(plan.load_data(find_data_dir(data_dir), seed)))


def references(data: Data) -> Iterator[Reference]:
    """A constant, and ridge or logistic regression of scikit-learn, fitted to the training split.

    Ridge regression chooses its penalty within the training rows, logistic regression by the
    validation split. Inputs are as the network sees them, flattened.
    """
    train, valid, test = (_arrays(data, split) for split in ("train", "valid", "test"))
    if data.objective.metric == "mse":
        yield from _regression(train, test)
    else:
        yield from _classification(train, valid, test)


def _regression(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> Iterator[Reference]:
    from sklearn.linear_model import RidgeCV

    constant = train[1].mean(0)
    yield Reference("constant: the training mean", ((test[1] - constant) ** 2).mean(1))
    ridge = RidgeCV(PENALTIES).fit(*train)
    predicted = ridge.predict(test[0]).reshape(test[1].shape)
    yield Reference("ridge regression", ((test[1] - predicted) ** 2).mean(1))


def _classification(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> Iterator[Reference]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    most = np.bincount(train[1]).argmax()
    yield Reference("constant: the largest class", (test[1] != most).astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a strength too weak to converge
        models = [LogisticRegression(C=strength).fit(*train) for strength in STRENGTHS]
    model = max(models, key=lambda fitted: fitted.score(*valid))
    yield Reference("logistic regression", (model.predict(test[0]) != test[1]).astype(float))


def _arrays(data: Data, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, features] and labels [n, ...] of a split, in float64."""
    parts = [(x.flatten(1).numpy(), y.numpy()) for x, y in data.in_order(split, CHUNK)]
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return inputs.astype(np.float64), labels

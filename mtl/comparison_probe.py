"""What the untuned encoder knows already: linear models on its embeddings, the floor that fine-tuning has to pass.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR 2017 workshop.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from configuration_mtl import TaskConfig
from mtl.metrics import LOWER_IS_BETTER, compute_task_metrics
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION

INVERSE_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""C of `LogisticRegression`, from the most to the least regularised."""
STRENGTHS = (10000.0, 1000.0, 100.0, 10.0, 1.0)
"""Alpha of `Ridge`, from the most to the least regularised."""
_ITERATIONS = 300
_LEAST = 1e-12  # Probability whose logarithm stands for that of a class without a row in train.

Rows = tuple[npt.NDArray, npt.NDArray]
"""Embeddings, (N, H), and labels, (N,) or (N, C), of the labelled rows of a split."""


@dataclass(frozen=True, eq=False)
class Probe:
    """The linear model of a task that is best on validation.

    Args:
        logits: What it says of the test rows, in the form of the task's head. Shape (N, C).
        strength: C of the logistic regression, or alpha of the ridge regression.
        validation: The metric on validation.
    """

    logits: npt.NDArray[np.float32]
    strength: float
    validation: float


def fit_probe(task: TaskConfig, train: Rows, validation: Rows, test: npt.NDArray, metric: str) -> Probe:
    """Fits a logistic or ridge regression of each strength on train, and keeps the one that is best on validation.

    Args:
        task: A task that has a head.
        train: Its labelled rows of train. Embeddings are standardised by these.
        validation: Its labelled rows of validation.
        test: Embeddings of the test rows. Shape (N, H).
        metric: What is best; a key of the task's metrics.
    """
    scaler = StandardScaler().fit(train[0])
    on_validation = scaler.transform(validation[0])  # (N, H)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    found: list[tuple[float, float, Says]] = []
    for strength, says in _FITS.get(task.problem_type, _classes)(task, scaler.transform(train[0]), train[1]):
        value = compute_task_metrics(task.problem_type, says(on_validation), validation[1])[metric]
        found.append((float(value), strength, says))
    # Of equal ones the first, which is regularised most; an undefined one is the last.
    value, strength, says = max(found, key=lambda one: -np.inf if np.isnan(one[0]) else sign * one[0])
    return Probe(says(scaler.transform(test)).astype(np.float32), strength, value)


Says = Callable[[npt.NDArray], npt.NDArray]
Fits = Iterator[tuple[float, Says]]


def _classes(task: TaskConfig, embeddings: npt.NDArray, labels: npt.NDArray) -> Fits:
    found = np.unique(labels)
    if len(found) < 2:  # Nothing tells the one from others, and scikit-learn refuses it.
        constant = np.where(np.arange(task.num_labels or 1) == found[0], 0.0, np.log(_LEAST))  # (C,)
        for strength in INVERSE_STRENGTHS:
            yield strength, lambda some: np.tile(constant, (len(some), 1))
        return
    for strength, model in _logistic(embeddings, labels):

        def says(some: npt.NDArray, model: LogisticRegression = model) -> npt.NDArray:
            logs = np.full((len(some), task.num_labels or 1), np.log(_LEAST))  # (N, C)
            logs[:, model.classes_] = np.maximum(model.predict_log_proba(some), np.log(_LEAST))
            return logs

        yield strength, says


def _ordinal(task: TaskConfig, embeddings: npt.NDArray, labels: npt.NDArray) -> Fits:
    for strength, classes in _classes(task, embeddings, labels):

        def says(some: npt.NDArray, classes: Says = classes) -> npt.NDArray:
            shares = scipy.special.softmax(classes(some), axis=1)  # (N, C)
            reaches = np.cumsum(shares[:, ::-1], axis=1)[:, ::-1]  # (N, C), P(y >= k)
            # The logit of going on from a class that was reached, as the head of an ordered task has it.
            return scipy.special.logit(np.clip(reaches[:, 1:] / reaches[:, :-1], _LEAST, 1 - _LEAST))

        yield strength, says


def _several_labels(task: TaskConfig, embeddings: npt.NDArray, labels: npt.NDArray) -> Fits:
    columns = [list(_one_label(embeddings, column)) for column in labels.T]
    yield from _side_by_side(INVERSE_STRENGTHS, columns)


def _one_label(embeddings: npt.NDArray, labels: npt.NDArray) -> Iterator[Says]:
    given = ~np.isnan(labels)  # (N,)
    classes = np.unique(labels[given])
    if len(classes) < 2:  # Nothing tells the one from the other.
        constant = np.log(_LEAST) if not len(classes) or classes[0] == 0 else -np.log(_LEAST)
        for _ in INVERSE_STRENGTHS:
            yield lambda some: np.full(len(some), constant)
        return
    for _, model in _logistic(embeddings[given], labels[given]):
        yield model.decision_function


def _numbers(task: TaskConfig, embeddings: npt.NDArray, labels: npt.NDArray) -> Fits:
    columns = []
    for column in labels.reshape(len(labels), -1).T:
        given = ~np.isnan(column)  # (N,)
        if not given.any():  # Of an output without a number nothing can be said.
            columns.append([lambda some: np.zeros(len(some)) for _ in STRENGTHS])
            continue
        models = [Ridge(alpha=alpha).fit(embeddings[given], column[given]) for alpha in STRENGTHS]
        columns.append([model.predict for model in models])
    yield from _side_by_side(STRENGTHS, columns)


def _side_by_side(strengths: tuple[float, ...], columns: list[list[Says]]) -> Fits:
    for place, strength in enumerate(strengths):
        models = [column[place] for column in columns]

        def says(some: npt.NDArray, models: list[Says] = models) -> npt.NDArray:
            return np.stack([model(some) for model in models], axis=1)  # (N, C)

        yield strength, says


def _logistic(embeddings: npt.NDArray, labels: npt.NDArray) -> Iterator[tuple[float, LogisticRegression]]:
    start: LogisticRegression | None = None
    for strength in INVERSE_STRENGTHS:
        # Each begins where the stronger one ended, which is near.
        model = LogisticRegression(C=strength, max_iter=_ITERATIONS, warm_start=True)
        if start is not None:
            model.coef_, model.intercept_, model.classes_ = start.coef_, start.intercept_, start.classes_
        with warnings.catch_warnings():
            # A fit that is not at its optimum is one more strength to choose from: it was stopped early.
            warnings.simplefilter("ignore", ConvergenceWarning)
            start = model.fit(embeddings, labels)
        yield strength, model


_FITS: dict[str, Callable[[TaskConfig, npt.NDArray, npt.NDArray], Fits]] = {
    MULTI_LABEL: _several_labels,
    ORDINAL: _ordinal,
    REGRESSION: _numbers,
}
"""How a problem type is fitted, where it is not by classes."""

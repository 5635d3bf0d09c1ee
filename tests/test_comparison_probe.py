"""The probe: linear models of every problem type on embeddings that hold the answer, or do not."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from configuration_mtl import TaskConfig
from mtl.comparison_probe import INVERSE_STRENGTHS, STRENGTHS, Rows, fit_probe
from mtl.metrics import compute_task_metrics
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION

COUNTS = {"train": 300, "validation": 100, "test": 120}


def embedded(seed: int = 0) -> dict[str, npt.NDArray]:
    """Returns embeddings of every split, (N, 6)."""
    rng = np.random.default_rng(seed)
    return {split: rng.normal(size=(count, 6)) * 3 + 5 for split, count in COUNTS.items()}


def rows(embeddings: npt.NDArray, task: TaskConfig) -> Rows:
    """Returns rows whose labels a linear model of the embeddings can tell."""
    first, second = embeddings[:, 0] - 5, embeddings[:, 1] - 5
    if task.problem_type == MULTI_LABEL:
        labels = np.stack([first > 0, second > 0, np.zeros(len(first))], axis=1).astype(np.float32)
        labels[::7, 0] = np.nan
        return embeddings, labels
    if task.problem_type == REGRESSION:
        return embeddings, (2 * first - second + 1).astype(np.float32)
    return embeddings, (first > -1.5).astype(np.int64) + (first > 1.5)


@pytest.mark.parametrize(
    ("task", "metric", "least"),
    [
        (TaskConfig("topic", labels=("a", "b", "c", "unseen")), "accuracy", 0.9),
        (TaskConfig("tags", MULTI_LABEL, labels=("a", "b", "never")), "f1_micro", 0.95),
        (TaskConfig("valence", REGRESSION), "rmse", None),
        (TaskConfig("stars", ORDINAL, labels=("1", "2", "3")), "qwk", 0.9),
    ],
)
def test_what_is_linear_is_found(task: TaskConfig, metric: str, least: float | None) -> None:
    embeddings = embedded()
    train, validation, (_, truth) = (rows(some, task) for some in embeddings.values())
    probe = fit_probe(task, train, validation, embeddings["test"], metric)
    assert probe.logits.shape == (COUNTS["test"], task.num_logits)
    assert probe.logits.dtype == np.float32
    found = compute_task_metrics(task.problem_type, probe.logits, truth)
    if least is None:
        assert found["rmse"] < 0.05  # Of labels with a standard deviation of about 7.
        assert probe.strength == min(STRENGTHS)
    else:
        assert found[metric] > least


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
def test_the_strength_is_the_best_on_validation(problem_type: str) -> None:
    is_class = problem_type != REGRESSION
    task = TaskConfig("t", problem_type, labels=("a", "b", "c") if is_class else None)
    rng = np.random.default_rng(1)
    embeddings = {split: rng.normal(size=(count, 80)) for split, count in (("train", 90), ("validation", 200))}
    noisy = {split: some[:, 0] + rng.normal(size=len(some)) for split, some in embeddings.items()}
    labels = {split: np.digitize(some, [-0.5, 0.5]) if is_class else some for split, some in noisy.items()}
    train, validation = ((embeddings[split], labels[split]) for split in ("train", "validation"))
    probe = fit_probe(task, train, validation, embeddings["validation"], "accuracy" if is_class else "rmse")
    scaler = StandardScaler().fit(train[0])
    scaled = [scaler.transform(some) for some, _ in (train, validation)]
    values = []
    for strength in INVERSE_STRENGTHS if is_class else STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000) if is_class else Ridge(alpha=strength)
        says = model.fit(scaled[0], train[1]).predict(scaled[1])
        error = np.sqrt(np.mean((says - validation[1]) ** 2))
        values.append((np.mean(says == validation[1]) if is_class else -error, strength))
    best = max(values, key=lambda value: value[0])
    # A warm start ends within the tolerance of lbfgs, which can move a row that stands between two classes.
    assert abs(probe.validation) == pytest.approx(abs(best[0]), abs=0.011)
    assert probe.strength == best[1]


def test_an_ordered_class_is_the_median_of_its_probabilities() -> None:
    task = TaskConfig("stars", ORDINAL, labels=("1", "2", "3"))
    embeddings = embedded(3)
    train, validation, _ = (rows(some, task) for some in embeddings.values())
    probe = fit_probe(task, train, validation, embeddings["test"], "qwk")
    scaler = StandardScaler().fit(train[0])
    model = LogisticRegression(C=probe.strength, max_iter=5000, tol=1e-8).fit(scaler.transform(train[0]), train[1])
    shares = model.predict_proba(scaler.transform(embeddings["test"]))
    goes_on = 1 / (1 + np.exp(-probe.logits.astype(np.float64)))
    assert goes_on[:, 0] == pytest.approx(1 - shares[:, 0], abs=0.02)  # As far as lbfgs stops from the optimum.
    assert goes_on.prod(axis=1) == pytest.approx(shares[:, 2], abs=0.02)


def test_a_label_that_is_always_or_never_given_is_said_as_seen() -> None:
    task = TaskConfig("tags", MULTI_LABEL, labels=("always", "never", "unknown"))
    embeddings = embedded()
    labels = {split: np.tile([1.0, 0.0, np.nan], (count, 1)) for split, count in COUNTS.items()}
    train, validation = ((embeddings[split], labels[split]) for split in ("train", "validation"))
    logits = fit_probe(task, train, validation, embeddings["test"], "f1_micro").logits
    assert (logits[:, 0] > 0).all()
    assert (logits[:, 1:] < 0).all()


@pytest.mark.parametrize("problem_type", ["single_label_classification", ORDINAL])
def test_one_class_in_train_is_said_of_every_row(problem_type: str) -> None:
    task = TaskConfig("t", problem_type, labels=("a", "b", "c"))
    embeddings = embedded()
    train, validation = ((embeddings[split], np.ones(COUNTS[split], np.int64)) for split in ("train", "validation"))
    probe = fit_probe(task, train, validation, embeddings["test"], "accuracy")
    found = compute_task_metrics(problem_type, probe.logits, np.ones(COUNTS["test"], np.int64))
    assert (probe.validation, found["accuracy"]) == (1.0, 1.0)


def test_an_output_without_a_number_in_train_leaves_the_others() -> None:
    task = TaskConfig("size", REGRESSION, labels=("known", "unknown"))
    embeddings = embedded()
    numbers = {split: np.stack([some[:, 0], np.full(len(some), np.nan)], axis=1) for split, some in embeddings.items()}
    train, validation = ((embeddings[split], numbers[split]) for split in ("train", "validation"))
    probe = fit_probe(task, train, validation, embeddings["test"], "rmse")
    assert np.abs(probe.logits[:, 0] - embeddings["test"][:, 0]).max() < 0.2
    assert (probe.logits[:, 1] == 0).all()

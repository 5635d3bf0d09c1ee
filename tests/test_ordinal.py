"""Ordered classes: likelihood, probabilities and median by hand, labels, predictions, metrics, and a training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from checks import NAN, assert_close, output_layer, same, training_args
from conftest import MakeModel, WriteRows, load_column
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from worked_scores import RANK_PREDICTIONS, RANK_REFERENCES, RANK_SCORES

from classification_mtl import ordinal_loss, ordinal_median, ordinal_probabilities
from configuration_mtl import TaskConfig
from mtl.console import shown, true_labels
from mtl.metrics import compute_task_metrics
from mtl.ordinal_metrics import QuadraticWeightedKappa
from mtl.trainer import MTLTrainer
from mtl.weighting import UncertaintyWeighting
from tasks_mtl import IGNORE_INDEX, ORDINAL

STARS = TaskConfig("stars", ORDINAL)
# sigmoid(log 3) = 3/4 and sigmoid(0) = 1/2: the first step is gone in 3 of 4 cases, the second in 1 of 2.
BY_HAND = torch.tensor([math.log(3.0), 0.0])


def test_probabilities_by_hand() -> None:
    assert_close(ordinal_probabilities(BY_HAND), torch.tensor([1 / 4, 3 / 4 * 1 / 2, 3 / 4 * 1 / 2]))
    # Two classes: it is a logistic regression.
    assert_close(ordinal_probabilities(torch.tensor([math.log(4.0)])), torch.tensor([0.2, 0.8]))


def test_probabilities_sum_to_one_also_where_they_are_tiny() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 20  # (N, C - 1)
    probabilities = ordinal_probabilities(logits)
    assert probabilities.shape == (50, 7)
    assert (probabilities >= 0).all()
    assert_close(probabilities.sum(dim=1), torch.ones(50))


def test_loss_is_the_negative_log_likelihood() -> None:
    logits = BY_HAND.expand(5, 2)
    labels = torch.tensor([0, 1, 2, IGNORE_INDEX, -1])
    expected = -(math.log(1 / 4) + math.log(3 / 8) + math.log(3 / 8))
    assert ordinal_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)  # float32
    many = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    labels = torch.arange(40) % 5
    likelihood = ordinal_probabilities(many)[torch.arange(40), labels]  # (N,)
    assert ordinal_loss(many, labels).item() == pytest.approx(-likelihood.log().sum().item(), rel=1e-12)


def test_loss_is_the_sum_of_the_conditional_cross_entropies() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]])
    # The first row stops at class 1; the second goes on to the last class, 3.
    sigmoid = logits.sigmoid().tolist()
    expected = -math.log(sigmoid[0][0]) - math.log(1 - sigmoid[0][1]) - sum(math.log(p) for p in sigmoid[1])
    assert ordinal_loss(logits, torch.tensor([1, 3])).item() == pytest.approx(expected, rel=1e-6)


def test_loss_of_large_logits_is_finite_and_steps_not_reached_have_no_gradient() -> None:
    logits = torch.tensor([[200.0, -200.0, 50.0]], requires_grad=True)
    loss = ordinal_loss(logits, torch.tensor([0]))
    assert loss.item() == 200.0
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("logits", "median"),
    [
        ([0.0, 5.0], 0),  # P(y <= 0) is exactly 1/2, which is enough.
        ([math.log(3.0), math.log(2.0)], 1),  # P(y <= 0) = 1/4, P(y <= 1) = 1/4 + 3/4 x 1/3 = 1/2.
        ([math.log(3.0), 0.0], 1),  # 1/4, 5/8
        ([math.log(3.0), math.log(3.0)], 2),  # 1/4, 1/4 + 3/4 x 1/4 = 7/16
        ([-1.0, 9.0], 0),
    ],
)
def test_median_by_hand(logits: list[float], median: int) -> None:
    assert ordinal_median(torch.tensor(logits, dtype=torch.float64)).item() == median


def test_median_has_the_least_expected_distance() -> None:
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2
    ranks = torch.arange(6.0, dtype=torch.float64)
    distances = ordinal_probabilities(logits) @ (ranks[:, None] - ranks).abs()  # (N, C), expected if C were chosen
    assert same(ordinal_median(logits), distances.argmin(dim=1))


def test_head_has_a_logit_for_each_step(tiny_model: MakeModel) -> None:
    task = TaskConfig("stars", ORDINAL, labels=("low", "mid", "high"), hidden_size=8)
    model = tiny_model(tasks=[task], head_dropout=0.0).eval()
    layer = output_layer(model, "stars")
    assert layer.out_features == task.num_logits == 2
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(BY_HAND)
    prediction = model.predict("price")["stars"]
    # The likeliest of equals would be "mid" or "high"; P(y <= low) = 1/4, P(y <= mid) = 5/8.
    assert prediction["label"] == "mid"
    assert prediction["score"] == prediction["probabilities"]["mid"] == pytest.approx(3 / 8)
    assert list(prediction["probabilities"]) == ["low", "mid", "high"]
    assert shown(task, prediction) == "mid (0.38)"
    assert true_labels({"label_stars": 2}, [task]) == {"stars": "high"}
    assert true_labels({"label_stars": IGNORE_INDEX}, [task]) == {"stars": "-"}


@pytest.mark.parametrize(
    ("values", "labels", "ids"),
    [
        ([10, 9, 2, None], ("2", "9", "10"), [2, 1, 0, -100]),
        (["10", "9", "", "-1"], ("-1", "9", "10"), [2, 1, -100, 0]),
        ([3.0, float("nan"), 1.0], ("1", "3"), [1, -100, 0]),
    ],
)
def test_integers_are_ordered_as_numbers(
    write: WriteRows, values: list[Any], labels: tuple[str, ...], ids: list[int]
) -> None:
    rows = [{"text": f"text {number}", "stars": value} for number, value in enumerate(values)]
    found, task = load_column(write(rows), STARS)
    assert (task.labels, found) == (labels, ids)


def test_a_cell_that_is_no_integer_among_integers_is_named(tmp_path: Path) -> None:
    lines = [f"text {number},{value}" for number, value in enumerate([1, 2, 3, 4, "five", 4, "five"])]
    (tmp_path / "stars.csv").write_text("\n".join(["text,stars", *lines]))
    message = (
        r"Task 'stars': column 'stars' of source 'stars', split 'train', row 4 \(the first row is 0\), has 'five', "
        r"but other labels are integers \(2 such cells in all\). Correct the cell, or name all `labels` of the task"
    )
    with pytest.raises(ValueError, match=message):
        load_column(tmp_path / "stars.csv", STARS)


def test_names_need_an_order(write: WriteRows, tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "stars": name} for number, name in enumerate(["low", "high", "mid"])]
    message = r"Task 'stars': nothing says which of the labels \['high', 'low', 'mid'\] comes before which. Name them"
    with pytest.raises(ValueError, match=message):
        load_column(write(rows), STARS)
    named = TaskConfig("stars", ORDINAL, labels=("low", "mid", "high"))
    assert load_column(write(rows), named) == ([0, 2, 1], named)
    # The order of a feature's names is as a rule that of the alphabet.
    features = Features({"text": Value("string"), "stars": ClassLabel(names=["high", "low"])})
    Dataset.from_dict({"text": ["a", "b"], "stars": [0, 1]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match="nothing says which"):
        load_column(tmp_path / "a.parquet", STARS)
    ids = TaskConfig("stars", ORDINAL, num_labels=4)
    ranks: list[dict[str, Any]] = [{"text": "a", "stars": 3}, {"text": "b", "stars": 0}]
    assert load_column(write(ranks), ids) == ([3, 0], ids)


def _logits_of(ranks: list[int], num_labels: int) -> np.ndarray:
    return np.where(np.arange(num_labels - 1) < np.array(ranks)[:, None], 4.0, -4.0)  # (N, C - 1)


def test_metrics_by_hand() -> None:
    logits, labels = _logits_of([*RANK_PREDICTIONS, 0], 4), np.array([*RANK_REFERENCES, IGNORE_INDEX])
    assert compute_task_metrics(ORDINAL, logits, labels) == pytest.approx({**RANK_SCORES, "support": 5})
    with pytest.raises(ValueError, match=r"found labels \[4\]. Give class ids 0 to 3, -100 = missing"):
        compute_task_metrics(ORDINAL, logits[:1], np.array([4]))


@pytest.mark.filterwarnings("error")
def test_kappa_against_scikit_learn_and_at_its_edges() -> None:
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    expected = sklearn.metrics.cohen_kappa_score(predicted, labels, weights="quadratic")
    assert QuadraticWeightedKappa.score(predicted, labels) == pytest.approx(expected)
    # Class 2 does not occur, but lies between 1 and 3 all the same. Squares: 0 + 4 + 0 + 4; by chance, of sums 7 and 7
    # and sums of squares 19 and 19, (4 x 19 + 4 x 19 - 2 x 7 x 7) / 4.
    predicted, labels = np.array([0, 3, 3, 1]), np.array([0, 1, 3, 3])
    assert QuadraticWeightedKappa.score(predicted, labels) == pytest.approx(1 - 8 / (54 / 4))
    assert QuadraticWeightedKappa.score(labels + 5, labels + 5) == 1.0
    assert math.isnan(QuadraticWeightedKappa.score(np.array([1, 1]), np.array([1, 1])))
    assert QuadraticWeightedKappa.score(np.array([1, 1]), np.array([0, 0])) == 0.0


def test_uncertainty_weighs_it_as_a_likelihood() -> None:
    tasks = [TaskConfig("stars", ORDINAL, num_labels=3)]
    assert UncertaintyWeighting(tasks).current_weights() == {"stars": 1.0}


def test_order_is_learned(
    tiny_model: MakeModel, toy_splits: tuple[DatasetDict, tuple[TaskConfig, ...]], tmp_path: Path
) -> None:
    splits, (topic, sentiment, *_) = toy_splits
    tasks = [topic, TaskConfig("sentiment", ORDINAL, labels=sentiment.labels)]
    args = training_args(
        tmp_path,
        max_steps=-1,
        num_train_epochs=12,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="sentiment_mae",
    )
    assert not args.greater_is_better
    trainer = MTLTrainer(
        tiny_model(tasks=tasks), args, train_dataset=splits["train"], eval_dataset=splits["validation"]
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_sentiment_qwk"] > 0.8
    assert metrics["eval_sentiment_mae"] < 0.3
    best = min(log["eval_sentiment_mae"] for log in trainer.state.log_history if "eval_sentiment_mae" in log)
    assert metrics["eval_sentiment_mae"] == pytest.approx(best)
    assert metrics["eval_score"] == pytest.approx((metrics["eval_sentiment_qwk"] + metrics["eval_topic_accuracy"]) / 2)


def test_missing_numbers_of_other_tasks_do_not_matter(tiny_model: MakeModel) -> None:
    tasks = [TaskConfig("stars", ORDINAL, num_labels=3), TaskConfig("valence", "regression")]
    model = tiny_model(tasks=tasks, head_dropout=0.0).eval()
    ids = torch.tensor([[2, 5, 3], [2, 6, 3]])
    labels = {"stars": torch.tensor([2, IGNORE_INDEX]), "valence": torch.tensor([NAN, 1.0])}
    output = model(ids, labels=labels)
    probability = ordinal_probabilities(output.logits["stars"][0])[2]
    assert_close(output.task_losses["stars"], -probability.log())

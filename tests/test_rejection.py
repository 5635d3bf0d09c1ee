"""Rejection: confidences and thresholds by hand, what is measured, what is predicted, and what is kept."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from checks import output_layer, training_args
from conftest import MakeModel, WriteRows, load_column
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from fresh_process import offline_env, run_fresh

from classification_mtl import confidence
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.console import shown, true_labels
from mtl.data import label_column
from mtl.evaluation import EvaluationMetrics, evaluate_split
from mtl.rejection import accepting_threshold, best_threshold, check_rejection_data, rejection_metrics
from mtl.trainer import MTLTrainer
from tasks_mtl import IGNORE_INDEX, ORDINAL, OUT_OF_SCOPE_INDEX

INTENT = TaskConfig("intent", out_of_scope_label="oos")
NAN = float("nan")

# Six rows by their confidence: out of scope, right, out of scope, wrong, right, right.
CONFIDENCES = np.array([0.2, 0.3, 0.5, 0.6, 0.8, 0.9])
OUTSIDE = np.array([True, False, True, False, False, False])
RIGHT = np.array([False, True, False, False, True, True])


def test_confidences_by_hand() -> None:
    logits = torch.tensor([[math.log(1.0), math.log(3.0), math.log(4.0)]])
    assert confidence(logits, "probability").item() == pytest.approx(4 / 8)
    assert confidence(logits, "logit").item() == pytest.approx(math.log(4.0))
    assert confidence(logits, "energy").item() == pytest.approx(math.log(8.0))
    # In float32 both would be 1.
    sure = confidence(torch.tensor([[30.0, 0.0], [31.0, 0.0]]), "probability")
    assert sure[0] < sure[1]


def test_best_threshold_by_hand_with_ties() -> None:
    # Right with 0, 1, ... 6 rows rejected, lowest first: 0 + 3, 1 + 3, 1 + 2, 2 + 2, 2 + 2, 2 + 1, 2 + 0. Four of six
    # are right with 1, 3 and 4 rows rejected; the lowest threshold is the one between 0.2 and 0.3.
    assert best_threshold(CONFIDENCES, OUTSIDE, RIGHT) == pytest.approx(0.25)
    # Without the row at 0.3 it is 2, 3, 3 - 1 ...: with rejected 0: 2, 1: 3, 2: 4, 3: 4, 4: 3, 5: 2.
    kept = CONFIDENCES != 0.3
    assert best_threshold(CONFIDENCES[kept], OUTSIDE[kept], RIGHT[kept]) == pytest.approx(0.55)
    # Rows of one confidence are accepted or rejected together: at 0.5, one of each.
    tied = np.array([0.5, 0.5, 0.7])
    assert best_threshold(tied, np.array([True, False, False]), np.array([False, True, True])) == pytest.approx(-0.5)
    assert best_threshold(tied, np.array([True, True, False]), np.array([False, False, True])) == pytest.approx(0.6)


def test_best_threshold_at_the_ends() -> None:
    nothing, everything = np.zeros(3, bool), np.ones(3, bool)
    confidences = np.array([0.9, 0.1, 0.4])
    assert best_threshold(confidences, nothing, everything) == pytest.approx(0.1 - 1)  # All are accepted.
    assert best_threshold(confidences, everything, nothing) == pytest.approx(0.9 + 1)  # All are rejected.
    neighbours = np.array([1.0, np.nextafter(1.0, 2.0)])
    threshold = best_threshold(neighbours, np.array([True, False]), np.array([False, True]))
    assert (neighbours >= threshold).tolist() == [False, True]


def test_best_threshold_against_trying_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        confidences = rng.random(30).round(1)  # Many are equal.
        outside = rng.random(30) < 0.4
        right = ~outside & (rng.random(30) < 0.7)

        def accuracy(
            threshold: float,
            values: np.ndarray = confidences,
            outside: np.ndarray = outside,
            right: np.ndarray = right,
        ) -> float:
            return float(np.where(outside, values < threshold, (values >= threshold) & right).mean())

        found = best_threshold(confidences, outside, right)
        tried = [(accuracy(threshold), -threshold) for threshold in np.arange(-0.05, 1.1, 0.1)]
        best, lowest = max(tried)
        assert accuracy(found) == best
        # The same rows are accepted as at the lowest of the best.
        assert ((confidences >= found) == (confidences >= -lowest)).all()


def test_accepting_threshold_by_hand() -> None:
    confidences = np.array([0.4, 0.1, 0.3, 0.2])
    assert accepting_threshold(confidences, 0.75) == pytest.approx(0.15)  # 3 of 4 are accepted.
    assert accepting_threshold(confidences, 0.74) == pytest.approx(0.15)
    assert accepting_threshold(confidences, 0.76) == pytest.approx(0.1 - 1)
    assert accepting_threshold(confidences, 1.0) == pytest.approx(0.1 - 1)
    assert accepting_threshold(confidences, 0.5) == pytest.approx(0.25)
    # 9 of 10; in floating point (1 - 0.9) x 10 is less than 1.
    assert accepting_threshold(np.arange(10) / 10, 0.9) == pytest.approx(0.05)
    # At 0.1 there are two rows, and one of four may be rejected.
    assert accepting_threshold(np.array([0.1, 0.1, 0.2, 0.3]), 0.75) == pytest.approx(0.1 - 1)


def _logits(confidences: np.ndarray, classes: list[int]) -> np.ndarray:
    """Returns logits of two classes whose largest is the confidence, and the other -1."""
    return np.where(np.arange(2) == np.array(classes)[:, None], confidences[:, None], -1.0)  # (N, 2)


def test_metrics_by_hand() -> None:
    task = TaskConfig("a", num_labels=2, out_of_scope_label="oos", rejection_score="logit", rejection_threshold=0.55)
    logits = np.concatenate([_logits(CONFIDENCES, [0, 1, 1, 0, 0, 1]), [[5.0, 0.0]]])
    labels = np.array([-1, 1, -1, 1, 0, 1, IGNORE_INDEX])
    # Rejected are the rows at 0.2, 0.3 and 0.5: both that are out of scope, and one that is not. Right are these two,
    # and of the accepted ones those at 0.8 and 0.9. Of the 2 x 4 pairs one is in the wrong order, 0.5 and 0.3.
    expected = {"oos_auroc": 7 / 8, "oos_recall": 1.0, "oos_precision": 2 / 3, "joint_accuracy": 4 / 6}
    assert rejection_metrics(task, logits, labels) == pytest.approx({**expected, "oos_support": 2})
    unfitted = TaskConfig("a", num_labels=2, out_of_scope_label="oos", rejection_score="logit")
    assert rejection_metrics(unfitted, logits, labels) == pytest.approx({"oos_auroc": 7 / 8, "oos_support": 2})
    by_task = EvaluationMetrics([task]).by_task({"a": logits}, {"a": labels})["a"]
    assert by_task["accuracy"] == 3 / 4  # Without threshold, of the rows that are of a class.
    assert (by_task["support"], by_task["oos_support"]) == (4, 2)
    loss = sum(math.log(1 + math.exp(-(c + 1))) for c in (0.3, 0.8, 0.9)) + math.log(1 + math.exp(0.6 + 1))
    assert by_task["loss"] == pytest.approx(loss / 4)
    reference = sklearn.metrics.roc_auc_score(labels[:6] == -1, -logits[:6].max(axis=1))
    assert by_task["oos_auroc"] == pytest.approx(reference)


@pytest.mark.filterwarnings("error")
def test_undefined_metrics_are_nan() -> None:
    task = TaskConfig("a", num_labels=2, out_of_scope_label="oos", rejection_threshold=0.0)
    inside = rejection_metrics(task, np.eye(2), np.array([0, 1]))
    assert np.isnan([inside["oos_auroc"], inside["oos_recall"], inside["oos_precision"]]).all()
    assert (inside["joint_accuracy"], inside["oos_support"]) == (1.0, 0)
    nothing = rejection_metrics(task, np.eye(2), np.array([IGNORE_INDEX, IGNORE_INDEX]))
    assert np.isnan([nothing["oos_auroc"], nothing["joint_accuracy"]]).all()
    broken = rejection_metrics(task, np.array([[NAN, 0.0], [0.0, 1.0]]), np.array([-1, 1]))
    assert math.isnan(broken["oos_auroc"])


def test_cells_of_that_name_are_no_class(write: WriteRows, tmp_path: Path) -> None:
    def rows(values: list[Any]) -> Path:
        return write([{"text": f"text {number}", "intent": value} for number, value in enumerate(values)])

    ids, task = load_column(rows(["pay", "oos", None, "book"]), INTENT)
    assert (ids, task.labels) == ([1, OUT_OF_SCOPE_INDEX, IGNORE_INDEX, 0], ("book", "pay"))
    named = TaskConfig("intent", labels=("pay", "book"), out_of_scope_label="oos")
    assert load_column(rows(["pay", "oos", None, "book"]), named)[0] == [0, -1, IGNORE_INDEX, 1]
    numbered = TaskConfig("intent", num_labels=2, out_of_scope_label="oos")
    assert load_column(rows(["0", "oos", "", "1"]), numbered)[0] == [0, -1, IGNORE_INDEX, 1]
    assert load_column(rows([0, 150, None, 1]), TaskConfig("intent", out_of_scope_label="150"))[0] == [0, -1, -100, 1]
    with pytest.raises(ValueError, match="row 1 .* unknown label 'oos'"):
        load_column(rows(["pay", "oos"]), TaskConfig("intent", labels=("pay", "book")))
    with pytest.raises(ValueError, match="Task 'intent' has no label in split 'train'"):
        load_column(rows(["oos", "oos"]), INTENT)
    features = Features({"text": Value("string"), "intent": ClassLabel(names=["pay", "oos", "book"])})
    columns = {"text": ["a", "b", "c", "d"], "intent": [2, 1, 0, -1]}
    Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "a.parquet"))
    ids, task = load_column(tmp_path / "a.parquet", INTENT)
    assert (ids, task.labels) == ([1, -1, 0, IGNORE_INDEX], ("pay", "book"))


def test_they_are_shown_by_their_name() -> None:
    task = TaskConfig("intent", labels=("pay", "book"), out_of_scope_label="oos")
    assert [true_labels({"label_intent": label}, [task])["intent"] for label in (1, -1, -100)] == ["book", "oos", "-"]
    assert shown(task, {"label": "oos", "score": 0.25, "in_scope": False}) == "oos (0.25)"


def test_prediction_says_whether_a_sentence_is_in_scope(tiny_model: MakeModel) -> None:
    def predict(**settings: Any) -> dict[str, Any]:
        task = TaskConfig("intent", labels=("pay", "book"), **settings)
        model = tiny_model(tasks=[task], head_dropout=0.0).eval()
        layer = output_layer(model, "intent")
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
        prediction: dict[str, Any] = model.predict("price")["intent"]
        return prediction

    def predict_by(score: str, threshold: float) -> dict[str, Any]:
        return predict(out_of_scope_label="oos", rejection_score=score, rejection_threshold=threshold)

    plain = predict()
    assert plain == {"label": "pay", "score": plain["score"], "probabilities": plain["probabilities"]}
    assert plain["score"] == pytest.approx(3 / 4)
    assert predict(out_of_scope_label="oos") == plain  # No threshold yet.
    assert predict_by("probability", 0.7) == {**plain, "in_scope": True}
    rejected = {**plain, "label": "oos", "in_scope": False}
    assert predict_by("probability", 0.8) == rejected
    assert predict_by("energy", math.log(4.0) + 0.01) == rejected
    assert predict_by("energy", math.log(4.0) - 0.01)["in_scope"]
    assert predict_by("logit", math.log(3.0) - 0.01)["in_scope"]
    assert predict(out_of_scope_label="oos", rejection_threshold=math.log(4.0) + 0.01) == rejected  # The default.


PREDICT_WITHOUT_PACKAGE = """
from transformers import AutoModel

folder, *sentences = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
report(predictions=model.predict(sentences), thresholds=[task.rejection_threshold for task in model.config.tasks])
"""


def test_predicts_in_a_process_without_the_package(make_model: MakeModel, tmp_path: Path) -> None:
    stars = TaskConfig("stars", ORDINAL, labels=("low", "mid", "high"))
    model = make_model(tasks=[TaskConfig("intent", labels=("pay", "book"), out_of_scope_label="oos"), stars])
    sentences = ["price", "match team goal", "why now"]
    scores = sorted(prediction["intent"]["score"] for prediction in model.predict(sentences))
    threshold = (scores[0] + scores[1]) / 2
    intent = TaskConfig(
        "intent",
        labels=("pay", "book"),
        out_of_scope_label="oos",
        rejection_score="probability",
        rejection_threshold=threshold,
    )
    model.config.tasks = [intent, stars]
    model.save_pretrained(tmp_path / "saved")
    env = offline_env(tmp_path / "home")
    got = run_fresh(PREDICT_WITHOUT_PACKAGE, tmp_path / "saved", *sentences, env=env, cwd=tmp_path / "empty")
    assert got["thresholds"] == [threshold, None]
    assert got["predictions"] == model.predict(sentences)
    assert sorted(prediction["intent"]["in_scope"] for prediction in got["predictions"]) == [False, True, True]
    loaded = MTLModel.from_pretrained(tmp_path / "saved")
    assert loaded.predict(sentences) == model.predict(sentences)


Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


@pytest.fixture
def oos_splits(toy_splits: Splits) -> Splits:
    """Gives the toy rows, where those of the topic "shop", the last, are out of scope; and the tasks."""
    splits, (topic, sentiment, *_) = toy_splits
    column = label_column("topic")

    def without_shop(row: dict[str, Any]) -> dict[str, Any]:
        return {column: OUT_OF_SCOPE_INDEX if row[column] == 2 else row[column]}

    tasks = (TaskConfig("topic", labels=(topic.labels or ())[:2], out_of_scope_label="shop"), sentiment)
    return splits.map(without_shop), tasks


def _trainer(model: MTLModel, splits: DatasetDict, folder: Path, **settings: Any) -> MTLTrainer:
    values: dict[str, Any] = {"max_steps": 24, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
    args = training_args(folder, **{**values, **settings})
    return MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["validation"])


def test_fitted_threshold_reaches_model_evaluation_and_folder(
    tiny_model: MakeModel, oos_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = oos_splits
    trainer = _trainer(tiny_model(tasks=tasks), splits, tmp_path)
    trainer.train()
    before = trainer.evaluate()
    assert "eval_topic_oos_auroc" in before and "eval_topic_oos_recall" not in before
    thresholds = trainer.fit_rejection()
    assert list(thresholds) == ["topic"]
    result = evaluate_split(trainer, splits["validation"], "validation", trainer.tasks)
    topic = result.metrics["topic"]
    assert topic["accuracy"] == before["eval_topic_accuracy"]
    assert topic["oos_auroc"] == before["eval_topic_oos_auroc"]
    assert "oos_auroc" not in result.metrics["sentiment"]
    output: Any = trainer.predict(splits["validation"])
    labels, logits = output.label_ids["topic"], torch.from_numpy(output.predictions["topic"])
    known = labels != IGNORE_INDEX
    sure = confidence(logits, "energy").numpy()

    def joint_accuracy(threshold: float) -> float:
        right = np.where(labels == -1, sure < threshold, (sure >= threshold) & (logits.argmax(1).numpy() == labels))
        return float(right[known].mean())

    assert topic["joint_accuracy"] == pytest.approx(joint_accuracy(thresholds["topic"]))
    assert topic["joint_accuracy"] == pytest.approx(max(map(joint_accuracy, [sure.min() - 1, *(sure + 1e-9)])))
    trainer.save_model()
    saved = json.loads((tmp_path / "config.json").read_text())["tasks"][0]
    assert (saved["out_of_scope_label"], saved["rejection_score"]) == ("shop", "energy")
    assert MTLModel.from_pretrained(tmp_path).config.task("topic").rejection_threshold == thresholds["topic"]
    accepting = trainer.fit_rejection(acceptance=1.0)["topic"]
    assert accepting == pytest.approx(sure[labels >= 0].min() - 1)
    assert trainer.fit_rejection(task_names=[]) == {}


def test_a_best_model_by_what_needs_a_threshold_is_refused(
    tiny_model: MakeModel, oos_splits: Splits, tmp_path: Path
) -> None:
    splits, (topic, sentiment) = oos_splits
    settings: dict[str, Any] = {"metric_for_best_model": "eval_topic_joint_accuracy", "load_best_model_at_end": False}
    with pytest.raises(ValueError, match="threshold of task 'topic', which is fitted after.*'topic_oos_auroc'"):
        _trainer(tiny_model(tasks=(topic, sentiment)), splits, tmp_path, **settings)
    _trainer(tiny_model(tasks=(replace(topic, rejection_threshold=0.5), sentiment)), splits, tmp_path, **settings)


def test_resumed_run_gets_the_same_threshold(tiny_model: MakeModel, oos_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = oos_splits
    settings: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    unbroken = _trainer(tiny_model(tasks=tasks), splits, tmp_path, **settings)
    unbroken.train()
    resumed = _trainer(tiny_model(tasks=tasks), splits, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.fit_rejection() == unbroken.fit_rejection()


def test_rows_out_of_scope_carry_no_loss(tiny_model: MakeModel, oos_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = oos_splits
    trainer = _trainer(tiny_model(tasks=tasks), splits, tmp_path)
    rows = [splits["train"][row] for row in range(16)]
    batch = trainer.data_collator(rows)
    outside = (batch["labels"]["topic"] == OUT_OF_SCOPE_INDEX).sum().item()
    assert outside > 0
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert counts["topic"].item() == (batch["labels"]["topic"] >= 0).sum().item()
    missing = {**batch, "labels": {**batch["labels"]}}
    missing["labels"]["topic"] = batch["labels"]["topic"].masked_fill(batch["labels"]["topic"] == -1, IGNORE_INDEX)
    trainer.model.eval()
    losses = [trainer.compute_loss(trainer.model, some) for some in (batch, missing)]
    assert isinstance(losses[0], torch.Tensor) and isinstance(losses[1], torch.Tensor)
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize(
    ("labels", "acceptance", "message"),
    [
        (
            [0, 1, -100],
            None,
            "'oos' is predicted cannot be fitted: validation has no such row.*`rejection_acc",
        ),
        ([-1, -100], None, "cannot be fitted: validation has no row of any class"),
        ([0, -1], 1.5, "rejection_acceptance must be above 0 and at most 1, found 1.5"),
        ([0, -1], 0.0, "found 0.0"),
        (None, None, "is fitted on validation, and there is none. Add a split, or give `rejection_threshold`"),
    ],
)
def test_data_that_no_threshold_can_be_fitted_on(
    labels: list[int] | None, acceptance: float | None, message: str
) -> None:
    dataset = None if labels is None else Dataset.from_dict({"label_intent": labels})
    with pytest.raises(ValueError, match=message):
        check_rejection_data([INTENT], dataset, acceptance)


def test_several_evaluation_sets_are_refused() -> None:
    sets = {"own": Dataset.from_dict({"label_intent": [0, -1]})}
    with pytest.raises(ValueError, match=r"is fitted on one data set, found several: \['own'\]. Give one of them"):
        check_rejection_data([INTENT], sets, None)


def test_acceptance_without_a_task_is_refused() -> None:
    with pytest.raises(ValueError, match="rejection_acceptance=0.9 has no effect: no threshold is fitted"):
        check_rejection_data([], None, 0.9)


def test_logits_that_are_not_finite_are_refused(tiny_model: MakeModel, oos_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = oos_splits
    model = tiny_model(tasks=tasks)
    trainer = _trainer(model, splits, tmp_path)
    with torch.no_grad():
        output_layer(model, "topic").bias.fill_(NAN)
    with pytest.raises(ValueError, match="Task 'topic': logits on validation are not finite"):
        trainer.fit_rejection()

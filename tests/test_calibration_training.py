"""A trained model is calibrated: what it predicts, what is measured, saved and loaded, and what stays as it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import output_layer, training_args
from conftest import MakeModel
from datasets import DatasetDict
from fresh_process import offline_env, run_fresh
from transformers import BatchEncoding

from classification_mtl import ordinal_median, ordinal_probabilities
from configuration_mtl import SCHEMA_VERSION, TaskConfig
from modeling_mtl import MTLModel
from mtl.calibration_metrics import calibration_of
from mtl.trainer import MTLTrainer
from tasks_mtl import MULTI_LABEL, ORDINAL

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]
TEXTS = ["match team goal now", "price awful", "why now", "plain scene of happy actor"]
NAN = float("nan")


@pytest.fixture
def ordered_splits(toy_splits: Splits) -> Splits:
    """Gives the toy rows, whose sentiment is an ordered label."""
    splits, (topic, sentiment, tags, valence) = toy_splits
    return splits, (topic, TaskConfig("sentiment", ORDINAL, labels=sentiment.labels), tags, valence)


def _trained(model: MTLModel, splits: DatasetDict, folder: Path, **settings: Any) -> MTLTrainer:
    values: dict[str, Any] = {"max_steps": 16, "per_device_train_batch_size": 8, "learning_rate": 5e-3}
    args = training_args(folder, **{**values, **settings})
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["validation"])
    trainer.train()
    return trainer


def _without_probabilities(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = ("label", "labels")
    return [
        {name: {key: said[key] for key in kept if key in said} for name, said in row.items() if isinstance(said, dict)}
        for row in predictions
    ]


def test_temperatures_change_probabilities_and_nothing_else(
    make_model: MakeModel, ordered_splits: Splits, inputs: BatchEncoding, tmp_path: Path
) -> None:
    splits, tasks = ordered_splits
    model = make_model(tasks=tasks)
    trainer = _trained(model, splits, tmp_path)
    before, labels_before = trainer.evaluate(), model.predict(TEXTS)
    outputs: Any = trainer.predict(splits["validation"])
    with torch.no_grad():
        logits_before = model.eval()(**inputs).logits
    fitted = trainer.calibrate()
    assert list(fitted) == ["topic", "sentiment", "tags"]
    assert trainer.tasks == tuple(model.config.tasks)
    assert trainer.tasks[3] == tasks[3]
    after = trainer.evaluate()
    measured = [
        key for key in before if key not in ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    ]
    assert {key: after[key] for key in measured} == {key: before[key] for key in measured}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    assert all(torch.equal(logits[name], logits_before[name]) for name in logits)
    predictions = model.predict(TEXTS)
    assert _without_probabilities(predictions) == _without_probabilities(labels_before)
    assert [row["valence"] for row in predictions] == [row["valence"] for row in labels_before]
    for task in trainer.tasks[:3]:
        temperature = task.calibration_temperature
        assert temperature is not None and temperature != 1.0
        found = calibration_of(task, outputs.predictions[task.name], outputs.label_ids[task.name])
        assert found["nll"] < found["before"]["nll"]
        assert (
            found["before"]["nll"] == pytest.approx(before[f"eval_{task.name}_loss"], rel=1e-5) or task.name == "tags"
        )
        for text, prediction in zip(TEXTS, predictions, strict=True):
            with torch.no_grad():
                raw = model(**model.tokenizer(text, return_tensors="pt")).logits[task.name][0]
            expected = {
                "topic": lambda x: x.softmax(-1), "sentiment": ordinal_probabilities, "tags": torch.sigmoid
            }[task.name](raw / temperature)  # fmt: skip
            said = list(prediction[task.name]["probabilities"].values())
            assert said == pytest.approx(expected.tolist(), abs=1e-5)
            if task.name == "sentiment":  # The median of the logits as they are, with its own probability.
                assert prediction["sentiment"]["label"] == task.id2label[int(ordinal_median(raw))]
                assert prediction["sentiment"]["score"] == said[int(ordinal_median(raw))]


PREDICT_WITHOUT_PACKAGE = """
from transformers import AutoModel

folder, *sentences = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
report(predictions=model.predict(sentences), tasks=[task.to_dict() for task in model.config.tasks])
"""


def test_what_was_fitted_is_measured_saved_and_used_without_the_package(
    make_model: MakeModel, ordered_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = ordered_splits
    model = make_model(tasks=tasks)
    trainer = _trained(model, splits, tmp_path / "out")
    assert "eval_topic_coverage" not in trainer.evaluate()
    fitted = trainer.calibrate(label_thresholds=True, abstention_error_rate={"topic": 0.1})
    topic, tags = fitted["topic"], fitted["tags"]
    assert topic.abstention_threshold is not None and fitted["sentiment"].abstention_threshold is None
    assert tags.label_thresholds is not None and len(tags.label_thresholds) == 4
    measured = trainer.evaluate()
    assert measured["eval_topic_kept_error"] <= 0.1
    # What is measured is what `predict` does.
    rows = splits["validation"]
    texts = [json.loads(line)["text"] for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    predictions = model.predict([texts[row] for row in rows["row"]])
    kept = [
        row["topic"]
        for row, label in zip(predictions, rows["label_topic"], strict=True)
        if label >= 0 and not row["topic"]["abstains"]
    ]
    labelled = sum(label >= 0 for label in rows["label_topic"])
    assert len(kept) / labelled == pytest.approx(measured["eval_topic_coverage"])
    assert all(said["score"] >= topic.abstention_threshold for said in kept)
    hits = predicted = positive = 0
    for row, cells in zip(predictions, rows["label_tags"], strict=True):
        for (label, probability), cell, least in zip(
            row["tags"]["probabilities"].items(), cells, tags.label_thresholds, strict=True
        ):
            is_chosen = label in row["tags"]["labels"]
            assert is_chosen == (probability >= least)
            if not np.isnan(cell):
                hits, predicted, positive = hits + (is_chosen and cell == 1), predicted + is_chosen, positive + cell
    assert measured["eval_tags_f1_micro"] == pytest.approx(2 * hits / (predicted + positive))
    trainer.save_model()
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["schema_version"] == SCHEMA_VERSION == 3
    env = offline_env(tmp_path / "home")
    got = run_fresh(PREDICT_WITHOUT_PACKAGE, tmp_path / "out", *TEXTS, env=env, cwd=tmp_path / "empty")
    assert got["tasks"] == [task.to_dict() for task in trainer.tasks]
    assert got["predictions"] == model.predict(TEXTS)
    loaded = MTLModel.from_pretrained(tmp_path / "out")
    assert loaded.config.tasks == list(trainer.tasks)
    assert loaded.predict(TEXTS) == model.predict(TEXTS)


def test_predictions_by_hand(tiny_model: MakeModel) -> None:
    def predict(task: TaskConfig, bias: list[float]) -> Any:
        model = tiny_model(tasks=[task], head_dropout=0.0).eval()
        layer = output_layer(model, task.name)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias).log())
        return model.predict("price")[task.name]

    pay = TaskConfig("a", labels=("pay", "book"), calibration_temperature=2.0)
    warm = predict(pay, [9.0, 1.0])  # At temperature 2 nine to one is three to one.
    assert warm["probabilities"] == pytest.approx({"pay": 3 / 4, "book": 1 / 4})
    assert (warm["label"], warm["score"], "abstains" in warm) == ("pay", warm["probabilities"]["pay"], False)
    assert predict(replace(pay, abstention_threshold=0.74), [9.0, 1.0]) == {**warm, "abstains": False}
    assert predict(replace(pay, abstention_threshold=0.76), [9.0, 1.0]) == {**warm, "abstains": True}
    # A rejection goes by the logits as they are: 0.9, not 3/4.
    rejecting = replace(
        pay, out_of_scope_label="oos", rejection_score="probability", rejection_threshold=0.8, abstention_threshold=0.8
    )
    assert predict(rejecting, [9.0, 1.0]) == {**warm, "in_scope": True, "abstains": True}
    outside = predict(replace(rejecting, rejection_threshold=0.95), [9.0, 1.0])
    assert outside == {**warm, "label": "oos", "in_scope": False, "abstains": True}
    assert predict(replace(pay, abstention_threshold=0.0), [NAN, 1.0])["abstains"] is True
    tags = TaskConfig("b", MULTI_LABEL, labels=("x", "y"), calibration_temperature=2.0, label_thresholds=(0.7, 0.8))
    assert predict(tags, [9.0, 9.0])["labels"] == ["x"]
    assert predict(replace(tags, calibration_temperature=None), [9.0, 9.0])["labels"] == ["x", "y"]
    assert predict(replace(tags, label_thresholds=None), [9.0, 0.9])["labels"] == ["x"]


def test_logits_that_are_not_finite_leave_a_task_uncalibrated(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    args = training_args(tmp_path)
    trainer = MTLTrainer(model, args, eval_dataset=splits["validation"])
    with torch.no_grad():
        output_layer(model, "topic").bias.fill_(NAN)
    fitted = trainer.calibrate(temperature=["topic"])
    assert fitted == {"topic": tasks[0]}
    assert trainer.tasks == tasks
    assert "Task 'topic': no calibration_temperature is fitted: logits of the rows are not finite" in caplog.text


def test_nothing_to_calibrate(tiny_model: MakeModel, tmp_path: Path) -> None:
    trainer = MTLTrainer(tiny_model(tasks=[TaskConfig("valence", "regression")]), training_args(tmp_path))
    assert trainer.calibrate() == {}
    trainer = MTLTrainer(tiny_model(), training_args(tmp_path))
    with pytest.raises(ValueError, match="are fitted on validation, and there is none"):
        trainer.calibrate()
    with pytest.raises(ValueError, match=r"\['topik'\] are no tasks"):
        trainer.calibrate(temperature=["topik"])


def test_a_best_model_by_what_needs_a_threshold_is_refused(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, (topic, *others) = toy_splits
    args = training_args(tmp_path, metric_for_best_model="eval_topic_kept_error", eval_strategy="steps", eval_steps=2)
    assert not args.greater_is_better
    arguments: dict[str, Any] = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    with pytest.raises(ValueError, match="abstention threshold of task 'topic', .*Choose 'topic_accuracy'"):
        MTLTrainer(tiny_model(tasks=[topic, *others]), args, **arguments)
    MTLTrainer(tiny_model(tasks=[replace(topic, abstention_threshold=0.5), *others]), args, **arguments)

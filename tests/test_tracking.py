"""What trackers record of a training: a curve for each task, in a run that ends with the training, and no network."""

import json
import socket
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from checks import training_args
from conftest import MakeModel
from datasets import DatasetDict
from transformers.integrations.integration_utils import TensorBoardCallback, rewrite_logs
from transformers.trainer_callback import CallbackHandler

from configuration_mtl import TaskConfig
from mtl.tracking import without_trackers
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]
Curves = dict[str, list[float]]

EXTRA = "needs the extra `tracking`"
OF_TASKS = (
    "train/loss_topic",
    "train/loss_valence",
    "train/weight_topic",
    "train/grad_norm_valence",
    "train/grad_cos_topic_valence",
    "eval/topic_accuracy",
    "eval/tags_f1_micro",
    "eval/valence_pearson",
    "eval/score",
)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Gives the addresses that something tries to reach; none of them is reached."""
    tried: list[Any] = []

    def refuse(_: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("No test reaches the network.")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    return tried


def train(model: Any, splits: DatasetDict, folder: Path, **settings: Any) -> MTLTrainer:
    """Trains four steps with two evaluations and two measurements of conflicts, then measures once more."""
    settings = {"eval_strategy": "steps", "eval_steps": 2, "conflict_steps": 2, "weighting": "uncertainty", **settings}
    data = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    trainer = MTLTrainer(model, training_args(folder, **settings), **data)
    trainer.train()
    trainer.predict(splits["validation"], metric_key_prefix="_")
    return trainer


def logged(trainer: MTLTrainer) -> Curves:
    """Returns what the trainer itself has logged, under the names that trackers show."""
    curves = defaultdict(list)
    for entry in trainer.state.log_history:
        for name, value in rewrite_logs({key: value for key, value in entry.items() if key != "step"}).items():
            curves[name].append(value)
    return curves


def test_tensorboard_has_a_curve_for_each_task(
    make_model: MakeModel, toy_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: list[Any]
) -> None:
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulator_of = pytest.importorskip(module, reason=EXTRA).EventAccumulator
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    splits, tasks = toy_splits
    trainer = train(make_model(tasks=tasks), splits, tmp_path / "out", report_to=["tensorboard"])
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    accumulator = accumulator_of(str(folder)).Reload()
    expected = logged(trainer)
    assert set(accumulator.Tags()["scalars"]) == set(expected)
    for name in OF_TASKS:
        points = accumulator.Scalars(name)
        assert [point.step for point in points] == ([1, 2, 3, 4] if len(points) == 4 else [2, 4])
        assert [point.value for point in points] == pytest.approx(expected[name], rel=1e-6)  # It keeps float32.
    assert addresses == []


def test_trackio_has_a_curve_for_each_task_in_one_local_run(
    make_model: MakeModel, toy_splits: Splits, tmp_path: Path, addresses: list[Any]
) -> None:
    trackio = pytest.importorskip("trackio", reason=EXTRA)
    splits, tasks = toy_splits
    settings = {"report_to": ["trackio"], "project": "of-a-test", "run_name": "first"}
    trainer = train(make_model(tasks=tasks), splits, tmp_path / "out", **settings)
    # In the cache of this session, see conftest: the folder is chosen when trackio is imported.
    with sqlite3.connect(trackio.utils.TRACKIO_DIR / "of-a-test.db") as database:
        rows = database.execute("select run_name, metrics from metrics order by id").fetchall()
    found: Curves = defaultdict(list)
    for _, metrics in rows:
        for name, value in json.loads(metrics).items():
            found[name].append(value)
    expected = logged(trainer)
    for name in OF_TASKS:
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name
    assert found["train/global_step"] == [1, 2, 2, 2, 3, 4, 4, 4, 4]  # Losses, conflicts, evaluation, and the end.
    assert {run for run, _ in rows} == {"first"}
    assert not any("__" in name for name in found)  # What was measured after the training.
    assert addresses == []


class _Silent(TensorBoardCallback):
    """A tracker without the service that it is of."""

    def __init__(self) -> None:
        pass


def test_trackers_come_back_when_a_prediction_fails(make_model: MakeModel) -> None:
    tracker = _Silent()
    handler = CallbackHandler([tracker], make_model(), None, None, None)
    before = list(handler.callbacks)
    with pytest.raises(RuntimeError, match="stopped"), without_trackers(handler):
        assert tracker not in handler.callbacks
        raise RuntimeError("stopped")
    assert handler.callbacks == before
    assert tracker in before


def test_curves_are_published_only_in_a_space_that_is_named(tmp_path: Path) -> None:
    assert training_args(tmp_path).trackio_static_space_id is False
    assert training_args(tmp_path, trackio_static_space_id="me/curves").trackio_static_space_id == "me/curves"

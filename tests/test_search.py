"""The search over learning rates and weights: what a trial gets, what is kept, and the front of trials."""

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from checks import training_args
from conftest import MakeModel, SaveBackbone, ToyRows
from datasets import DatasetDict
from matplotlib.axes import Axes

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.pareto import draw_fronts, pareto_front
from mtl.search import search
from mtl.search_space import SearchConfig
from mtl.search_summary import summary, trial_line
from mtl.trainer import MTLTrainer
from train_trainer import main

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]
SPACE = {"learning_rate": (1e-4, 1e-2), "weight": (0.1, 10.0), "weight_valence": (0.5, 0.5)}


class _Models:
    """Makes tiny models, and keeps the tasks of each."""

    def __init__(self, make: MakeModel) -> None:
        self.make = make
        self.tasks: list[tuple[TaskConfig, ...]] = []

    def __call__(self, tasks: Sequence[TaskConfig]) -> MTLModel:
        self.tasks.append(tuple(tasks))
        return self.make(tasks=tasks)


def run(
    make: MakeModel, splits: Splits, folder: Path, *, training: dict[str, Any] | None = None, **settings: Any
) -> tuple[dict[str, Any], _Models, MTLTrainer]:
    data, tasks = splits
    args = training_args(folder, **{"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **(training or {})})
    trainer = MTLTrainer(make(tasks=tasks), args, train_dataset=data["train"], eval_dataset=data["validation"])
    models = _Models(make)
    results = search(trainer, models, SearchConfig(**{"n_trials": 3, "space": SPACE, **settings}))
    return results, models, trainer


def test_each_trial_trains_with_its_weights_and_rate(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    results, models, trainer = run(tiny_model, toy_splits, tmp_path)
    assert json.loads((tmp_path / "search.json").read_text()) == results
    assert [trial["state"] for trial in results["trials"]] == ["complete"] * 3
    assert len(models.tasks) == 3
    for trial, tasks in zip(results["trials"], models.tasks, strict=True):
        params = trial["params"]
        assert params.keys() == {"learning_rate", *(f"weight_{task.name}" for task in tasks)}
        assert {f"weight_{task.name}": task.weight for task in tasks}.items() <= params.items()
        assert params["weight_valence"] == 0.5
        assert 1e-4 <= params["learning_rate"] <= 1e-2
        assert trial["metrics"].keys() == {"score", *(task.name for task in tasks)}
    rates = [trial["params"]["learning_rate"] for trial in results["trials"]]
    assert len(set(rates)) == 3
    scores = [trial["metrics"]["score"] for trial in results["trials"]]
    assert results["best"] == [number for number, score in enumerate(scores) if score == max(scores)]
    # The trainer has its settings back, trials saved nothing, and four tasks make six pairs.
    assert trainer.args.learning_rate == 1e-2
    assert trainer.args.save_strategy == "steps"
    assert not list(tmp_path.rglob("*.safetensors"))
    assert len(list(tmp_path.glob("pareto-*.png"))) == 6
    assert f"\n  {results['best'][0]:>3}  score {max(scores):.4f}" in summary(results)


def test_weights_reach_the_loss(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    _, models, trainer = run(tiny_model, toy_splits, tmp_path, n_trials=1)
    assert trainer.tasks == models.tasks[0]
    expected = {task.name: task.weight for task in models.tasks[0]}
    assert trainer.weighting.current_weights() == expected
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    total = sum(weight * log[f"loss_{name}"] for name, weight in expected.items())
    assert log["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kept", [0.5, 1.0])
def test_journal_with_a_damaged_line_is_told_and_can_be_mended(
    kept: float, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    before, _, _ = run(tiny_model, toy_splits, tmp_path, n_trials=2)
    journal = tmp_path / "search.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    place = int(kept * (len(lines) - 1))
    journal.write_bytes(b"".join([*lines[:place], lines[place][:5], *lines[place + 1 :]]))
    with pytest.raises(ValueError, match=rf"search.journal': line {place + 1} of .* Delete it and all lines after it"):
        run(tiny_model, toy_splits, tmp_path, n_trials=2)
    journal.write_bytes(b"".join(lines[:place]))  # As the message says.
    after, _, _ = run(tiny_model, toy_splits, tmp_path, n_trials=2)
    assert [trial["state"] for trial in after["trials"]] == ["complete"] * 2
    assert after["trials"][0] == before["trials"][0]


@pytest.mark.slow
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits = (toy_splits[0], toy_splits[1][:2])  # One pair of tasks to draw.
    settings: dict[str, Any] = {"space": {"learning_rate": (1e-4, 1e-2), "weight": (0.1, 10)}}
    whole, _, _ = run(tiny_model, splits, tmp_path / "whole", n_trials=4, **settings)
    run(tiny_model, splits, tmp_path / "parts", n_trials=2, **settings)
    resumed, models, _ = run(tiny_model, splits, tmp_path / "parts", n_trials=4, **settings)
    assert len(models.tasks) == 2
    assert resumed == whole
    with pytest.raises(ValueError, match="is of a search with another ranges"):
        run(tiny_model, splits, tmp_path / "parts", space={"weight": (0.5, 2.0)})
    with pytest.raises(ValueError, match="is of a search with another objectives: score, now tasks"):
        run(tiny_model, splits, tmp_path / "parts", objectives="tasks", **settings)


def test_a_trial_that_was_interrupted_is_made_again(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"learning_rate": (1e-4, 1e-2)}
    whole, _, _ = run(tiny_model, toy_splits, tmp_path / "whole", n_trials=2, space=space)
    evaluate = MTLTrainer.evaluate

    def interrupted(self: MTLTrainer, *args: Any, **kwargs: Any) -> Any:
        evaluate(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(MTLTrainer, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, toy_splits, tmp_path / "parts", n_trials=2, space=space)
    monkeypatch.undo()
    resumed, models, _ = run(tiny_model, toy_splits, tmp_path / "parts", n_trials=2, space=space)
    assert len(models.tasks) == 2
    assert resumed == whole
    with pytest.raises(ValueError, match="is of a search with another max_steps: 2, now 3. Give another `output_dir`"):
        run(tiny_model, toy_splits, tmp_path / "parts", n_trials=3, space=space, training={"max_steps": 3})
    other = (DatasetDict({**toy_splits[0], "train": toy_splits[0]["train"].select(range(40))}), toy_splits[1])
    with pytest.raises(ValueError, match=r"another rows: \[64, 40\], now \[40, 40\]"):
        run(tiny_model, other, tmp_path / "parts", n_trials=3, space=space)


@pytest.mark.parametrize("objectives", ["score", "tasks"])
def test_a_first_trial_without_a_value_does_not_end_the_search(
    objectives: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = (toy_splits[0], toy_splits[1][:1])
    evaluate = MTLTrainer.evaluate
    calls: list[int] = []

    def undefined_at_first(self: MTLTrainer, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        undefined = {"eval_score": math.nan, "eval_topic_accuracy": math.nan} if len(calls) == 1 else {}
        return evaluate(self, *args, **kwargs) | undefined

    monkeypatch.setattr(MTLTrainer, "evaluate", undefined_at_first)
    results, _, _ = run(tiny_model, splits, tmp_path, n_trials=2, objectives=objectives, space={"weight": (1, 2)})
    assert [trial["state"] for trial in results["trials"]] == ["fail", "complete"]
    assert results["trials"][0]["metrics"]["topic"] is None
    assert results["best"] == [1]


def test_an_objective_a_task(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    training = {"eval_strategy": "steps", "eval_steps": 1, "freeze": "backbone", "per_device_eval_batch_size": 40}
    space = {"head_learning_rate": ("1e-3", "1e-1")}  # YAML reads 1e-3 as text.
    results, _, trainer = run(
        tiny_model, toy_splits, tmp_path, training=training, objectives="tasks", space=space, n_trials=4
    )
    assert trainer.embedding_cache is not None
    assert results["settings"]["directions"] == ["maximize"] * 4
    names = [task.name for task in toy_splits[1]]
    points = [[trial["metrics"][name] for name in names] for trial in results["trials"]]
    assert results["best"] == pareto_front(points, ["maximize"] * 4)


def test_front_by_hand() -> None:
    #   b
    # 3 |  0
    # 2 |     1  4      1 is behind 4 in a and level in b; 2 is behind in both; 3 is the best in a.
    # 1 |  2        3
    #   +--------------- a
    #      1  2  3  4
    points = [(1, 3), (2, 2), (1, 1), (4, 1), (3, 2)]
    assert pareto_front(points, ["maximize", "maximize"]) == [0, 3, 4]
    assert pareto_front(points, ["minimize", "minimize"]) == [2]
    assert pareto_front(points, ["maximize", "minimize"]) == [3]
    assert pareto_front([(1.0,), (2.0,), (2.0,)], ["maximize"]) == [1, 2]
    assert pareto_front([], ["maximize"]) == []


def test_pictures_of_every_pair(tmp_path: Path) -> None:
    trials = [
        {"number": number, "state": "complete", "metrics": {"a": a, "b": b, "c": 0.5}}
        for number, (a, b) in enumerate([(0.7, 0.9), (0.8, 0.8), (0.6, 0.6), (None, 0.1)])
    ]
    metrics = {"a": "accuracy", "b": "rmse", "c": "pearson"}
    settings = {"metrics": metrics, "objectives": "tasks"}
    files = draw_fronts({"settings": settings, "trials": trials, "best": [0, 1, 2]}, tmp_path)
    assert [file.name for file in files] == ["pareto-a-b.png", "pareto-a-c.png", "pareto-b-c.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_trials_at_one_point_are_named_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, tuple[float, float]]] = []
    monkeypatch.setattr(Axes, "annotate", lambda self, text, place, **_: shown.append((text, place)))
    points = [(0.5, 0.5), (0.9, 0.1), (0.5, 0.5)]
    trials = [
        {"number": number, "state": "complete", "metrics": {"a": a, "b": b}} for number, (a, b) in enumerate(points)
    ]
    draw_fronts({"settings": {"metrics": {"a": "accuracy", "b": "accuracy"}}, "trials": trials}, tmp_path)
    assert sorted(shown) == [("0, 2", (0.5, 0.5)), ("1", (0.9, 0.1))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_trials": 0}, "n_trials must be an int of at least 1, found 0"),
        ({"objectives": "loss"}, "objectives 'loss' is unknown. Use one of"),
        ({"space": {}}, "space must map names to ranges"),
        ({"space": {"weight": (0, 1)}}, "the range of 'weight' must be 0 < least <= most"),
        ({"space": {"weight": (2, 1)}}, "the range of 'weight' must be 0 < least <= most"),
        ({"space": {"weight": 3}}, "the range of 'weight' must be two numbers, found 3"),
        ({"trials": 3}, "there is no setting 'trials'. Known are"),
    ],
)
def test_illegal_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig.from_dict(settings)


def test_a_name_that_is_nothing_to_search(tasks: tuple[TaskConfig, ...]) -> None:
    with pytest.raises(ValueError, match="space has 'weight_topik'. It may have"):
        SearchConfig(space={"weight_topik": (1, 2)}).ranges(tasks)


def test_frozen_encoder_leaves_the_rate_of_the_heads_to_search(tasks: tuple[TaskConfig, ...]) -> None:
    assert SearchConfig().ranges(tasks, is_frozen=True) == {"head_learning_rate": (1e-4, 1e-2)}
    config = SearchConfig(space={"head_learning_rate": (1, 2), "learning_rate": (1, 2), "weight_topic": (1, 2)})
    with pytest.raises(ValueError, match=r"\['learning_rate', 'weight_topic'\] are sampled, but the encoder"):
        config.ranges(tasks, is_frozen=True)


def test_needs_rows_of_validation(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    trainer = MTLTrainer(
        tiny_model(tasks=toy_splits[1]), training_args(tmp_path), train_dataset=toy_splits[0]["train"]
    )
    with pytest.raises(ValueError, match="A search needs rows of validation"):
        search(trainer, lambda tasks: tiny_model(tasks=tasks), SearchConfig())


@pytest.mark.parametrize("name", ["optuna", "matplotlib"])
def test_a_missing_extra_is_told(
    name: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(module: str, *args: Any) -> Any:
        if module == name:
            raise ImportError(module)
        return real(module, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf'needs {name}: `pip install "mtl-sentence-transformers\[search\]"`'):
        run(tiny_model, toy_splits, tmp_path)


def test_the_program_searches(
    backbone_dir: SaveBackbone, toy_rows: ToyRows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")}
    for seed, file in enumerate(files.values()):
        file.write_text("".join(json.dumps(row) + "\n" for row in toy_rows(40, seed)), encoding="utf-8")
    source = {"files": {split: str(file) for split, file in files.items()}, "labels": {"topic": "topic"}}
    source["labels"] |= {"valence": "valence"}
    settings = {
        "backbone": str(backbone_dir("bert")), "sources": [source], "use_cpu": True, "max_steps": 2,
        "tasks": [{"name": "topic"}, {"name": "valence", "problem_type": "regression", "weight": 0.5}],
        "search": {"n_trials": 2, "objectives": "tasks", "space": {"weight_topic": [0.5, 2]}},
        "output_dir": str(tmp_path / "out"), "disable_tqdm": True, "freeze": "lower_layers:1",
    }  # fmt: skip
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    results = main([str(path)])
    assert len(results["trials"]) == 2
    assert all(0.5 <= trial["params"]["weight_topic"] <= 2 for trial in results["trials"])
    assert all(math.isfinite(value) for trial in results["trials"] for value in trial["metrics"].values())
    assert "2 trials; best by tasks:" in capsys.readouterr().out
    assert (tmp_path / "out" / "pareto-topic-valence.png").is_file()


def test_summary_has_settings_to_copy() -> None:
    params = {"learning_rate": 1.23456789e-05, "head_learning_rate": 0.002, "weight_topic": 0.51239}
    trial = {"number": 1, "state": "complete", "params": params, "metrics": {"score": 0.81234567, "topic": None}}
    failed = {"number": 0, "state": "fail", "params": {"learning_rate": 0.5}, "metrics": {}}
    assert trial_line(trial) == (
        "  1  score 0.8123  (learning_rate 1.23e-05, head_learning_rate 0.002, weight_topic 0.512)"
    )
    assert trial_line(failed) == "  0  without a value  (learning_rate 0.5)"
    lines = summary({"trials": [failed, trial], "best": [1], "settings": {"objectives": "score"}}).splitlines()
    assert lines[:2] == ["2 trials; best by score:", f"  {trial_line(trial)}"]
    assert yaml.safe_load("\n".join(lines[2:-1])) == {
        "learning_rate": 1.235e-05,
        "head_learning_rate": 0.002,
        "tasks": [{"name": "topic", "weight": 0.5124}],
    }

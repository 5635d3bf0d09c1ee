"""The command `mtl compare`: every part trained alike, resumed, refused where it must be, and told in words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import SaveBackbone, ToyRows
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

import mtl.commands.compare as command
import mtl.commands.compare_run as compare_run
import train_trainer
from modeling_mtl import MTLModel
from mtl.commands.compare_run import Comparison, Stopwatch, part_args
from mtl.commands.compare_setup import set_up
from mtl.comparison_parts import PLACE, PartFolder, part_rows
from mtl.comparison_plan import MULTI, PAIR, PROBE, SINGLE, PlannedPart

WriteSettings = Callable[..., str]
NAMES = ("topic", "sentiment", "valence")
STEPS = 6
QUICK = ("--probe", "false", "--seeds", "0")


@pytest.fixture
def write_settings(tmp_path: Path, toy_rows: ToyRows, backbone_dir: SaveBackbone) -> WriteSettings:
    """Gives a function that writes data and a settings file, and returns the file's path."""
    backbone = str(backbone_dir("bert"))
    for split, count, seed in (("train", 48, 0), ("dev", 24, 1), ("test", 30, 2)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(count, seed)))
    files = {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}

    def write(**changes: Any) -> str:
        settings = {
            "backbone": backbone,
            "data_dir": str(tmp_path),
            "tasks": [
                {"name": "topic", "weight": 0.5},
                {"name": "sentiment", "labels": ["negative", "neutral", "positive"]},
                {"name": "valence", "problem_type": "regression"},
            ],
            "sources": [{"name": "toy", "files": files, "labels": {name: name for name in NAMES}}],
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "train_sampling_strategy": "group_by_length",
            "max_length": 32,
            "use_cpu": True,
            "precision": "fp32",
            "disable_tqdm": True,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**settings, **changes}))
        return str(path)

    return write


def folder_of(tmp_path: Path, part: PlannedPart) -> PartFolder:
    return PartFolder(tmp_path / "out-compare" / "parts" / part.name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
def test_compares_from_settings_to_verdict(
    write_settings: WriteSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = [write_settings(), "--seeds", "0", "1", "--pairs", "--resamples", "100"]
    caplog.set_level("INFO")
    results = command.main([*arguments, "--metrics", '{"valence": "rmse"}'])
    folder = tmp_path / "out-compare"
    assert json.loads((folder / "comparison.json").read_text(), parse_constant=pytest.fail) == results
    assert (folder / "comparison.md").read_text().strip() in capsys.readouterr().out
    assert list(results["tasks"]) == list(NAMES)
    assert results["tasks"]["valence"]["lower_is_better"]
    assert results["plan"]["seeds"] == [0, 1]
    for name, part in results["plan"]["parts"].items():  # Equal steps: so many as the multi-task run has.
        assert set(part["steps"]) == {STEPS}, name
    assert results["plan"]["parts"]["topic"]["rows"]["train"] < 48
    assert results["cost"]["ratio"]["parameters"] > 2.9
    assert results["cost"]["latency_of"] == {"texts": 30, "device": "cpu", "repeats": 5}
    assert [row[place] for place, row in enumerate(results["transfer"]["matrix"])] == [None] * 3
    done = sorted(path.name for path in (folder / "parts").iterdir())
    assert len(done) == 2 * (1 + 3 + 3) + 1
    assert "pair-topic+valence-seed-1" in done
    for part in done:
        assert not list((folder / "parts" / part).glob("model/checkpoint-*"))
    assert "Part 3 of 15: sentiment alone, seed 0" in caplog.text
    # Its figures are those of the parts.
    record = json.loads((folder / "parts" / "multi-seed-0" / "part.json").read_text())
    told = record["results"]["test"]["tasks"]["topic"]["accuracy"]
    assert results["tasks"]["topic"]["multi_task"]["by_seed"][0] == pytest.approx(told)
    # The same command has nothing left to train, and says the same.
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("part.json")}
    assert command.main([*arguments, "--metrics", '{"valence": "rmse"}']) == results
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("part.json")}


def test_parts_are_what_the_training_program_makes(write_settings: WriteSettings, tmp_path: Path) -> None:
    command.main([write_settings(), *QUICK])
    multi, single = (
        folder_of(tmp_path, part) for part in (PlannedPart(MULTI, NAMES, 0), PlannedPart(SINGLE, ("topic",), 0))
    )
    report = train_trainer.main([write_settings(), "--seed", "0"])
    assert_same_weights(multi.model, tmp_path / "out")
    record = json.loads((multi.path / "part.json").read_text())
    for split in ("validation", "test"):
        assert record["results"][split]["tasks"] == report["results"][split]["tasks"]
    # The single-task part: the same as on files that hold no other rows, for as many steps.
    for split in ("train", "dev", "test"):
        rows = map(json.loads, (tmp_path / f"{split}.jsonl").read_text().splitlines())
        kept = [{"text": row["text"], "topic": row["topic"]} for row in rows if row["topic"] is not None]
        (tmp_path / f"topic-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    files = {split: f"topic-{split}.jsonl" for split in ("train", "dev", "test")}
    sources = [{"name": "toy", "files": files, "labels": {"topic": "topic"}}]
    changes = {"tasks": [{"name": "topic"}], "sources": sources, "output_dir": str(tmp_path / "alone")}
    changes |= {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": STEPS, "save_steps": STEPS}
    train_trainer.main([write_settings(**changes), "--seed", "0", "--max_steps", str(STEPS)])
    assert_same_weights(single.model, tmp_path / "alone")


def test_parts_agree_on_test_rows_and_labels(write_settings: WriteSettings, tmp_path: Path) -> None:
    command.main([write_settings(), "--seeds", "0", "--resamples", "100"])
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    multi = folder_of(tmp_path, PlannedPart(MULTI, NAMES, 0)).read()
    probe = folder_of(tmp_path, PlannedPart(PROBE, NAMES)).read()
    assert multi.places.tolist() == list(range(len(rows)))
    for name in NAMES:
        single = folder_of(tmp_path, PlannedPart(SINGLE, (name,), 0)).read()
        places, labels, said = multi.of_task(name)
        assert places.tolist() == [place for place, row in enumerate(rows) if row[name] is not None]
        for other in (single, probe):
            other_places, other_labels, other_said = other.of_task(name)
            np.testing.assert_array_equal(places, other_places)
            np.testing.assert_array_equal(labels, other_labels)
            assert said.logits.shape == other_said.logits.shape


class Killed(TrainerCallback):
    """Ends the process, as far as a test can, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise RuntimeError("killed")


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(
    write_settings: WriteSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    whole = [write_settings(**changes), *QUICK, "--output_dir", str(tmp_path / "whole")]
    command.main(whole)
    trained: list[str] = []
    assemble = compare_run.assemble

    def killed_in_the_second_part(settings: Any, args: Any, *rest: Any) -> Any:
        run = assemble(settings, args, *rest)
        if "out-compare" in str(args.output_dir):
            trained.append(Path(str(args.output_dir)).parent.name)
            if trained.count("single-topic-seed-0") == 1:
                run.trainer.add_callback(Killed(5))
        return run

    monkeypatch.setattr(compare_run, "assemble", killed_in_the_second_part)
    arguments = [write_settings(**changes), *QUICK]
    with pytest.raises(RuntimeError, match="killed"):
        command.main(arguments)
    command.main(arguments)
    names = ("multi", "single-topic", "single-topic", "single-sentiment", "single-valence")
    assert trained == [f"{name}-seed-0" for name in names]
    part = PlannedPart(SINGLE, ("topic",), 0)
    broken = folder_of(tmp_path, part)
    record = json.loads((broken.path / "part.json").read_text())
    assert record["resumed"]
    assert record["steps"] == STEPS
    assert_same_weights(broken.model, tmp_path / "whole" / "parts" / part.name / "model")
    assert (
        broken.read().logits["topic"].tolist()
        == PartFolder(tmp_path / "whole" / "parts" / part.name).read().logits["topic"].tolist()
    )


def test_the_time_before_an_interruption_counts() -> None:
    steps: list[int] = []
    watch = Stopwatch(lambda: steps.append(1))
    states: Any = {"Stopwatch": {"attributes": {"seconds": 500.0}}}  # As a checkpoint gives them back.
    kept = TrainerState(global_step=3, stateful_callbacks=states)
    told: Any = (None, kept, None)
    watch.on_train_begin(*told)
    watch.on_step_end(*told)
    assert 500.0 < watch.state()["attributes"]["seconds"] < 600.0
    assert steps == [1]
    told[1].global_step = 0  # A run that begins anew.
    watch.on_train_begin(*told)
    assert watch.seconds < 100.0


@pytest.mark.slow
def test_parts_of_other_settings_are_refused(write_settings: WriteSettings, tmp_path: Path) -> None:
    path = write_settings()
    command.main([path, *QUICK])
    with pytest.raises(ValueError, match=r"learning_rate: 0\.005, now 0\.001.*--output_dir, or --overwrite"):
        set_up([path, *QUICK, "--learning_rate", "1e-3"])
    set_up([path, *QUICK, "--logging_steps", "3", "--tolerance", "1", "--conflict_steps", "2"])  # No figure changes.
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([*rows[:-1], rows[-1].replace('"text": "', '"text": "now ')]))
    with pytest.raises(ValueError, match="rows: "):
        set_up([path, *QUICK])
    results = command.main([path, *QUICK, "--overwrite"])
    assert results["plan"]["seeds"] == [0]
    set_up([path, *QUICK])


@pytest.mark.slow
def test_models_are_removed_if_they_are_not_kept(write_settings: WriteSettings, tmp_path: Path) -> None:
    results = command.main([write_settings(), *QUICK, "--keep_models", "false"])
    assert results["cost"]["ratio"]["latency_ms"] > 0
    assert not list((tmp_path / "out-compare").rglob("model.safetensors"))
    assert command.main([write_settings(), *QUICK, "--keep_models", "false"]) == results


REFUSED = [
    ({"tasks": [{"name": "topic"}]}, "one task"),
    ({"sources": []}, "No sources"),
    ({"seeds": [1, 1]}, "each once"),
    ({"tolerance": -1.0}, "at least 0"),
    ({"resamples": 10}, "at least 100"),
    ({"search": {"n_trials": 1}}, "Search first"),
    ({"metrics": {"topci": "accuracy"}}, "but the tasks are"),
    ({"metrics": {"topic": "rmse"}}, "no metric 'rmse'"),
    ({"push_to_hub": True}, "push_to_hub=True is not for mtl compare"),
    ({"resume_from_checkpoint": "last"}, "goes on by itself"),
    ({"freeze": "backbone+heads:topic"}, "freezes heads"),
    ({"freeze_schedule": {0: "heads_except:topic", 1: "none"}}, "freezes heads"),
    ({"freeze": "all"}, "nothing trains"),
    ({"num_train_epochs": 0}, "is no training"),
    ({"mixture": "annealed", "homogeneous_batches": True}, "Choose another mixture"),
    ({"test_fraction": 0.0, "sources": "without test"}, "no split 'test'"),
    ({"validation_fraction": 0.0, "sources": "without dev"}, "no label in split 'validation'"),
    ({"metric_for_best_model": "topic_acuracy"}, "topic_accuracy"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_refuses_before_any_training(
    changes: dict[str, Any], told: str, write_settings: WriteSettings, tmp_path: Path
) -> None:
    if isinstance(changes.get("sources"), str):
        left_out = changes["sources"].split()[-1]
        files = {split: f"{split}.jsonl" for split in ("train", "dev", "test") if split != left_out}
        sources = [{"name": "toy", "files": files, "labels": {name: name for name in NAMES}}]
        changes = {**changes, "sources": sources}
    with pytest.raises(ValueError, match=told):
        set_up([write_settings(**changes)])
    assert not (tmp_path / "out-compare").exists()


def test_wrong_settings_are_told_without_a_traceback(write_settings: WriteSettings) -> None:
    with pytest.raises(SystemExit, match="mtl compare: error: The settings have one task"):
        command.cli([write_settings(tasks=[{"name": "topic"}])])


def test_an_encoder_that_knows_the_tasks_is_refused(write_settings: WriteSettings, tmp_path: Path) -> None:
    train_trainer.main([write_settings(), "--max_steps", "1"])
    with pytest.raises(ValueError, match="has learned the tasks"):
        set_up([write_settings(), "--backbone", str(tmp_path / "out"), "--output_dir", str(tmp_path / "other")])


@pytest.fixture
def comparison_of(write_settings: WriteSettings) -> Callable[..., Comparison]:
    """Gives a function that sets a comparison up."""
    return lambda *arguments, **changes: set_up([write_settings(**changes), *arguments])


def args_of(comparison: Comparison, part: PlannedPart) -> Any:
    rows = part_rows(comparison.splits, part, comparison.tasks)
    return part_args(comparison, part, rows, Path("somewhere"), resume=False)


def test_a_single_task_run_has_no_weighting_and_is_looked_at_at_the_same_steps(
    comparison_of: Callable[..., Comparison],
) -> None:
    comparison = comparison_of(
        "--seeds", "4", "--pairs", num_train_epochs=2, weighting="dwa", aggregation="sum",
        metric_for_best_model="valence_rmse", freeze_schedule={0: "backbone", 1: "none"},
    )  # fmt: skip
    by_kind = {part.kind: args_of(comparison, part) for part in comparison.parts if part.kind != PROBE}
    single_of_valence = next(part for part in comparison.parts if part.kind == SINGLE and part.tasks == ("valence",))
    multi, single, pair = (by_kind[kind] for kind in (MULTI, SINGLE, PAIR))
    assert comparison.budget.max_steps == 2 * STEPS
    assert (multi.max_steps, multi.eval_strategy, multi.num_train_epochs) == (-1, "epoch", 2)
    for args in (single, pair):
        assert (args.max_steps, args.seed, args.data_seed) == (2 * STEPS, 4, 4)
        assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == ("steps", 6, "steps", 6)
    assert (multi.weighting, single.weighting, pair.weighting) == ("dwa", "fixed", "dwa")
    assert (multi.aggregation, single.aggregation, pair.aggregation) == ("sum", "none", "sum")
    own = args_of(comparison, single_of_valence)
    assert (own.metric_for_best_model, own.greater_is_better) == ("valence_rmse", False)
    of_topic = args_of(comparison, PlannedPart(SINGLE, ("topic",), 4))
    assert (of_topic.metric_for_best_model, of_topic.greater_is_better) == ("score", True)
    # 39 rows are 5 steps an epoch: the second phase begins at step 6 all the same.
    assert of_topic.freeze_schedule == {"0": "backbone", "1.2": "none"}
    assert [task.weight for task in comparison.tasks] == [0.5, 1.0, 1.0]


def test_rows_out_of_scope_are_measured_and_not_trained_on(comparison_of: Callable[..., Comparison]) -> None:
    tasks = [{"name": "topic", "labels": ["film", "sport"], "out_of_scope_label": "shop"}, {"name": "sentiment"}]
    sources = {"files": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}}
    labels = {"labels": {"topic": "topic", "sentiment": "sentiment"}}
    comparison = comparison_of(tasks=tasks, sources=[{"name": "toy", **sources, **labels}], fit_rejection=True)
    rows = part_rows(comparison.splits, PlannedPart(SINGLE, ("topic",), 0), comparison.tasks)
    assert min(rows["train"]["label_topic"]) == 0
    assert set(rows["test"]["label_topic"]) == {-1, 0, 1}
    assert "label_sentiment" not in rows["test"].column_names
    assert comparison.settings.of_part(comparison.tasks[:1]).fit_rejection
    assert comparison.settings.of_part(comparison.tasks[1:]).fit_rejection is None


@pytest.mark.slow
def test_a_task_without_a_head_is_trained_along_and_compared_by_its_metric(
    write_settings: WriteSettings, tmp_path: Path, toy_rows: ToyRows
) -> None:
    for split, count, seed in (("train", 40, 5), ("dev", 20, 6), ("test", 24, 7)):
        rows = toy_rows(2 * count, seed)
        pairs = [
            {"text": one["text"], "other": two["text"], "score": float(place % 3 == 0)}
            for place, (one, two) in enumerate(zip(rows[::2], rows[1::2], strict=True))
        ]
        (tmp_path / f"pairs-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    own = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    sources = [
        {"name": "toy", "files": own, "labels": {"topic": "topic"}},
        {"name": "pairs", "files": {split: f"pairs-{file}" for split, file in own.items()}},
    ]
    sources[1] |= {"compare_with": ["other"], "labels": {"alike": "score"}, "pairs": ["near"]}
    sources.append(dict(sources[1], name="untested", labels={}, files={"train": "pairs-train.jsonl"}))
    tasks = [{"name": "topic"}, {"name": "alike", "problem_type": "scored_pairs"}]
    tasks.append({"name": "near", "problem_type": "positive_pairs"})
    results = command.main([write_settings(tasks=tasks, sources=sources), "--seeds", "0", "--resamples", "100"])
    assert results["tasks"]["alike"]["metric"] == "spearman"
    assert results["tasks"]["alike"]["difference"]["low"] is not None
    assert results["tasks"]["alike"]["probe"]["mean"] is not None  # The untuned encoder's cosines.
    assert results["tasks"]["near"]["verdict"] == "not judged"
    single = PartFolder(tmp_path / "out-compare" / "parts" / "single-topic-seed-0")
    assert MTLModel.from_pretrained(single.model).config.task_names == ["topic"]


@pytest.mark.slow
def test_pairs_have_the_same_negatives_in_every_part(
    write_settings: WriteSettings, tmp_path: Path, toy_rows: ToyRows
) -> None:
    for split, count, seed in (("train", 40, 5), ("dev", 20, 6), ("test", 40, 7)):
        rows = toy_rows(2 * count, seed)
        pairs = [{"text": one["text"], "other": two["text"]} for one, two in zip(rows[::2], rows[1::2], strict=True)]
        (tmp_path / f"pairs-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    own = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    of_pairs = {"name": "pairs", "files": {split: f"pairs-{file}" for split, file in own.items()}}
    sources = [{"name": "toy", "files": own, "labels": {"topic": "topic"}}]
    sources.append({**of_pairs, "compare_with": ["other"], "pairs": ["near"]})
    tasks = [{"name": "topic"}, {"name": "near", "problem_type": "positive_pairs"}]
    # An encoder that does not move: all three have the same embedding, but other rows beside the pairs.
    still = {"learning_rate": 1e-12, "per_device_eval_batch_size": 8, "load_best_model_at_end": False}
    settings = write_settings(tasks=tasks, sources=sources, **still)
    near = command.main([settings, "--seeds", "0", "--resamples", "100"])["tasks"]["near"]
    assert 0 < near["single_task"]["mean"] < 1
    assert near["multi_task"]["mean"] == near["probe"]["mean"] == near["single_task"]["mean"]


def test_a_task_without_test_labels_is_trained_along_only(write_settings: WriteSettings, tmp_path: Path) -> None:
    for split in ("dev", "test"):
        rows = [
            json.loads(line) | {"valence": None} for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = set_up([write_settings(), *QUICK])
    assert [part.name for part in comparison.parts] == [
        "multi-seed-0", "single-topic-seed-0", "single-sentiment-seed-0"
    ]  # fmt: skip


def test_what_a_teacher_says_is_learned_from_alone_too(write_settings: WriteSettings, tmp_path: Path) -> None:
    train_trainer.main([write_settings(), "--max_steps", "1", "--output_dir", str(tmp_path / "teacher")])
    comparison = set_up([write_settings(), *QUICK, "--teacher", str(tmp_path / "teacher")])
    rows: Dataset = part_rows(comparison.splits, PlannedPart(SINGLE, ("topic",), 0), comparison.tasks)["train"]
    assert len(rows) == 48  # The teacher knows every row.
    assert set(rows.column_names) == {PLACE, "label_topic", "source", "teacher_topic", "text"}

"""`mtl distill-static`: what it writes and measures, what of the settings is the teacher's own, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import MakeModel, ToyRows, WriteRows
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

import mtl.cli
from modeling_mtl import MTLModel
from mtl.trainer import MTLTrainer
from predictor_mtl import MANIFEST, MTLPredictor
from tasks_mtl import ORDINAL, POSITIVE_PAIRS

WORDS = ["--dimensions", "8", "--hidden_size", "4", "--num_train_epochs", "1", "--disable_tqdm", "true"]


class Distil:
    """Distils a tiny teacher with settings that may be changed.

    Args:
        teacher: The teacher, saved in the folder.
        settings: The settings, as in a file.
        folder: Where teacher, settings and students lie.
    """

    def __init__(self, teacher: MTLModel, settings: dict[str, Any], folder: Path) -> None:
        self.teacher, self.settings, self.folder = teacher, settings, folder
        teacher.save_pretrained(folder / "teacher")

    def __call__(self, *words: str, out: str = "out", **changes: Any) -> dict[str, Any]:
        """Runs the command, and returns what the manifest says of the student."""
        file = self.folder / "settings.yaml"
        file.write_text(yaml.safe_dump({**self.settings, **changes}))
        places = [str(place) for place in (self.folder / "teacher", self.folder / out, file)]
        mtl.cli.main(["distill-static", *places, *WORDS, *words])
        (graph,) = json.loads((self.folder / out / MANIFEST).read_text(encoding="utf-8"))["graphs"]
        return dict(graph)


@pytest.fixture
def distil(make_model: MakeModel, toy_rows: ToyRows, write: WriteRows, tmp_path: Path) -> Distil:
    """Gives the command for a teacher whose labels stand in no alphabetical order, and for settings that name none."""
    model = make_model()
    names = [task.name for task in model.config.tasks]
    settings = {
        "tasks": [{"name": task.name, "problem_type": task.problem_type} for task in model.config.tasks],
        "sources": [{"path": str(write(toy_rows(80, 0))), "labels": {name: name for name in names}}],
    }
    return Distil(model, settings, tmp_path)


def test_command_writes_a_student_and_what_it_loses(
    distil: Distil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = distil()
    shown = capsys.readouterr().out
    assert graph["rows"] == 8
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "On the split `test`, which neither was trained on" in card.text
    names = distil.teacher.config.task_names
    for name in names:
        figures = dict(graph["measured"][name])
        teacher, (student,) = figures.pop("teacher"), figures.values()
        assert f"{teacher:.4f}" in shown and f"{student:.4f}" in shown
        assert f"| {teacher:.4f} | {student:.4f} |" in card.text
    predictions = MTLPredictor(tmp_path / "out").predict(["match team goal"])
    assert set(predictions[0]) == set(names)


def test_the_teacher_is_measured_by_its_own_labels(distil: Distil, toy_rows: ToyRows, write: WriteRows) -> None:
    rows = [{**row, "part": "test" if place % 2 else "train"} for place, row in enumerate(toy_rows(80, 0))]
    source = {**distil.settings["sources"][0], "path": str(write(rows, "parted.json")), "split_column": "part"}
    graph = distil(sources=[source], validation_fraction=0.0)
    known = [row for row in rows if row["part"] == "test" and row["topic"] is not None]
    right = [
        said["topic"]["label"] == row["topic"]
        for said, row in zip(distil.teacher.predict([row["text"] for row in known]), known, strict=True)
    ]
    assert graph["measured"]["topic"]["teacher"] == pytest.approx(np.mean(right))
    tasks = json.loads((distil.folder / "out" / MANIFEST).read_text(encoding="utf-8"))["tasks"]
    for student, teacher in zip(tasks[:2], distil.teacher.config.tasks[:2], strict=True):
        assert tuple(student["labels"]) == teacher.labels


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ["shop", "film", "sport"]}, r"labels is \('shop', 'film', 'sport'\) in the settings"),
        ({"labels": ["sport", "film", "shop", "more"]}, "A student answers as its teacher does: set it alike"),
        ({"num_labels": 4}, "num_labels is 4 in the settings, and 3 in the model"),
        ({"problem_type": ORDINAL}, f"problem_type is '{ORDINAL}' in the settings"),
        ({"name": "mood"}, "The settings have a task 'mood'"),
    ],
)
def test_other_tasks_than_the_teachers_are_refused(fields: dict[str, Any], message: str, distil: Distil) -> None:
    first, *others = distil.settings["tasks"]
    with pytest.raises(SystemExit, match=message):
        distil(tasks=[{**first, **fields}, *others])


def test_what_the_file_says_of_the_teachers_training_gives_way(distil: Distil) -> None:
    expected = distil(out="plain")
    changes: dict[str, Any] = {
        "activation_checkpointing": True,
        "layer_decay": 0.9,
        "max_steps": 1,
        "peft": {"peft_type": "LORA", "r": 2},
        "pooling": "cls",
        "push_to_hub": True,
        "save_adapter": True,
        "search": {"n_trials": 2},
    }
    # An adapter and a frozen encoder are refused together.
    for out, some in (("changed", changes), ("frozen", {"freeze": "backbone"})):
        assert distil(out=out, **some)["measured"] == expected["measured"]
        one, other = (load_file(distil.folder / name / "model.safetensors")["embeddings"] for name in ("plain", out))
        np.testing.assert_array_equal(one, other)
    distil("--freeze_schedule", '{"0": "backbone", "0.5": "none"}', out="schedule")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "other"], "--teacher is set by the command itself"),
        (["--pooling=cls"], "--pooling is set by the command itself"),
        (["--search", "{}"], "--search is set by the command itself"),
        (["--dimensions", "0"], "--dimensions must be at least 1, found 0"),
    ],
)
def test_what_the_command_sets_is_refused(words: list[str], message: str, distil: Distil) -> None:
    with pytest.raises(SystemExit, match=message):
        distil(*words)


def test_other_models_are_not_written_over(distil: Distil) -> None:
    before = (distil.folder / "teacher" / "config.json").read_bytes()
    with pytest.raises(SystemExit, match="teacher holds another model, which would be overwritten"):
        distil(out="teacher")
    assert (distil.folder / "teacher" / "config.json").read_bytes() == before
    (distil.folder / "file").touch()
    with pytest.raises(SystemExit, match="File exists"):
        distil(out="file")
    distil()
    distil()  # Over a student of before.


def test_tasks_without_a_head_are_trained_too(distil: Distil, toy_rows: ToyRows, write: WriteRows) -> None:
    rows = [{**row, "other": row["text"]} for row in toy_rows(80, 0)]
    source = {**distil.settings["sources"][0], "path": str(write(rows, "pairs.json")), "compare_with": "other"}
    tasks = [*distil.settings["tasks"], {"name": "near", "problem_type": POSITIVE_PAIRS}]
    graph = distil(tasks=tasks, sources=[{**source, "pairs": ["near"]}])
    assert set(graph["measured"]) == set(distil.teacher.config.task_names)


def test_a_task_that_only_the_teacher_labels_is_not_measured(distil: Distil) -> None:
    (source,) = distil.settings["sources"]
    labels = {name: column for name, column in source["labels"].items() if name != "topic"}
    graph = distil(sources=[{**source, "labels": labels}])
    assert set(graph["measured"]) == set(distil.teacher.config.task_names) - {"topic"}
    assert "topic" in MTLPredictor(distil.folder / "out").predict("match")


def test_the_card_tells_of_rows_that_were_trained_on(distil: Distil) -> None:
    distil(validation_fraction=0.0, test_fraction=0.0)
    card = ModelCard.load(distil.folder / "out" / "README.md")
    assert "On the split `train`, which the student was trained on" in card.text
    assert "neither was trained on" not in card.text


def test_a_resumed_student_is_that_of_the_unbroken_run(distil: Distil, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ["--save_strategy", "steps", "--save_steps", "3"]
    distil(*steps, out="whole")
    step, done = MTLTrainer.training_step, []

    def until_killed(self: MTLTrainer, *args: Any, **kwargs: Any) -> Any:
        done.append(1)
        if len(done) == 6:
            raise MemoryError
        return step(self, *args, **kwargs)

    monkeypatch.setattr(MTLTrainer, "training_step", until_killed)
    with pytest.raises(MemoryError):
        distil(*steps)
    monkeypatch.setattr(MTLTrainer, "training_step", step)
    shutil.copytree(distil.folder / "out.training", distil.folder / "other.training")
    distil(*steps, "--resume_from_checkpoint", "last")
    for file in ("model.safetensors", "heads.safetensors"):
        left, right = (load_file(distil.folder / out / file) for out in ("whole", "out"))
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])
    with pytest.raises(SystemExit, match="its vectors have 8 dimensions, those of this run 6"):
        distil(*steps, "--resume_from_checkpoint", "last", "--dimensions", "6", out="other")

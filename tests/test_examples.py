"""Each example script, run through its `main`: what it prints, returns and leaves behind. And a recipe of the docs."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import MakeModel, SaveBackbone, ToyRows

import train_trainer
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def main_of(name: str) -> Callable[[list[str]], Any]:
    # By path: another installed package may bring a module `examples`.
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


def docs_blocks(section: str) -> list[tuple[str, str]]:
    """Returns language and text of the blocks in a section of docs/transfer.md."""
    text = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8")
    return re.findall(
        r"```(\w+)\n(.*?)```", text.partition(f"## {section}\n")[2].partition("\n## ")[0], flags=re.DOTALL
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_is_short_and_says_how_to_run_it(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert f"    python examples/{name}.py\n" in text.split('"""')[1]


def test_runs_as_a_script() -> None:
    script = ["examples/compare_two_sentences.py", "The sky is blue.", "The sky is blue."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # Stands for an installed package.
    run = subprocess.run([sys.executable, *script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Cosine similarity: 1.000" in run.stdout


def test_compare_two_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    compare = main_of("compare_two_sentences")
    related = compare([])
    unrelated = compare(["The battery lasts all day.", "The senate rejected the bill on Tuesday."])
    assert related > 0.3 > abs(unrelated)
    printed = capsys.readouterr().out
    assert f"Cosine similarity: {related:.3f}" in printed
    assert "384 numbers" in printed


def test_predict_untrained(capsys: pytest.CaptureFixture[str]) -> None:
    predict = main_of("predict_untrained")
    predictions = predict([])
    printed = capsys.readouterr().out
    assert len(predictions) == 5
    for prediction in predictions:
        assert prediction["topic"]["label"] in ("film", "product", "politics")
        assert sum(prediction["sentiment"]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert printed.count("score") == 10
    assert "mean nothing yet: the heads are random" in printed
    scores = [[prediction["topic"]["score"] for prediction in made] for made in (predictions, predict([]))]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)  # Elsewhere in memory the last bit may round another way.
    assert predict(["--seed", "1"])[0]["topic"]["score"] != pytest.approx(scores[0][0], abs=1e-6)


@pytest.mark.parametrize("setting", ["backbone", "lower_layers:1"])
def test_choose_what_to_freeze(setting: str, backbone_dir: SaveBackbone, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--backbone", str(backbone_dir("bert")), "--freeze", setting, "--steps", "2"]
    changed = main_of("choose_what_to_freeze")(arguments)
    frozen = {"backbone": ("backbone.",), "lower_layers:1": ("backbone.embeddings.", "backbone.encoder.layer.0.")}
    # Attention does not depend on the bias of the keys, so that bias has no gradient but rounding.
    certain = {name: value for name, value in changed.items() if not name.endswith("key.bias")}
    assert certain == {name: not name.startswith(frozen[setting]) for name in certain}
    printed = capsys.readouterr().out
    count = sum(name.startswith(frozen[setting]) for name in changed)
    assert f"0 of {count} frozen tensors changed" in printed
    for known in ("none", "all", "backbone", "heads:topic", "heads_except:sentiment", "lower_layers:2"):
        assert f"freeze={known}: " in printed


def test_train_on_the_csv_that_it_writes(
    backbone_dir: SaveBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    arguments = ["--backbone", str(backbone_dir("bert")), "--output_dir", str(output), "--disable_tqdm", "true"]
    answers = main_of("train_on_your_csv")(arguments)
    printed = capsys.readouterr().out
    assert "No --csv is given, so a small file was written" in printed
    assert f"{output} holds the saved model" in printed
    assert [sorted(answer) for answer in answers] == [["sentiment", "topic"]] * 2
    assert {"config.json", "model.safetensors", "README.md"} <= {file.name for file in output.iterdir()}


def test_train_on_a_csv_of_ones_own(backbone_dir: SaveBackbone, tmp_path: Path) -> None:
    file, output = tmp_path / "mails.csv", tmp_path / "model"
    rows = [
        f"mail {number},{('calm', 'angry')[number % 2]},{('', 'shop', 'bank')[number % 3]}" for number in range(60)
    ]
    file.write_text("\n".join(["body,tone,team", *rows]) + "\n", encoding="utf-8")
    arguments = ["--csv", str(file), "--text", "body", "--label", "mood=tone", "team"]
    arguments += ["--backbone", str(backbone_dir("distilbert")), "--output_dir", str(output)]
    answers = main_of("train_on_your_csv")([*arguments, "--max_steps", "2", "--disable_tqdm", "true"])
    assert all(answer["mood"] in ("angry", "calm") and answer["team"] in ("bank", "shop") for answer in answers)
    assert MTLModel.from_pretrained(output).config.task_names == ["mood", "team"]


def test_train_on_the_pairs_that_it_writes(
    backbone_dir: SaveBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backbone", str(backbone_dir("bert")), "--output_dir", str(tmp_path / "model")]
    answers = main_of("train_on_pairs")([*arguments, "--max_steps", "2", "--disable_tqdm", "true"])
    assert "No --csv is given, so a small file was written" in capsys.readouterr().out
    assert all(label in ("no", "yes") and -1 <= cosine <= 1 for label, cosine in answers)
    model = MTLModel.from_pretrained(tmp_path / "model")
    assert [task.has_head for task in model.config.tasks] == [True, False]


def test_adding_a_task_as_docs_transfer_tells(
    tiny_model: MakeModel, toy_rows: ToyRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, command), (_, code) = docs_blocks("Adding a task")
    monkeypatch.chdir(tmp_path)
    tiny_model().eval().save_pretrained("outputs/vader")
    rows = [
        {"text": row["text"], "urgency": ("low", "high")[number % 2]} for number, row in enumerate(toy_rows(40, 0))
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"path": "rows.jsonl", "labels": {"urgency": "urgency"}}
    settings = {"tasks": [{"name": "urgency"}], "sources": [source], "max_steps": 2, "disable_tqdm": True}
    Path("urgency.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    train_trainer.main(shlex.split(command)[2:])
    old, new = (MTLModel.from_pretrained(f"outputs/{name}") for name in ("vader", "urgency"))
    assert new.config.task_names == [*old.config.task_names, "urgency"]
    # Weights and not outputs: the same weights elsewhere in memory may round the last bit in another way.
    found = new.state_dict()
    assert [name for name, tensor in old.state_dict().items() if not torch.equal(tensor, found[name])] == []
    sentence = "A great match, why now?"
    scores = [model.predict(sentence)["topic"]["score"] for model in (old, new)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)

    names: dict[str, Any] = {}
    exec(compile(code, "transfer.md", "exec"), names)
    assert names["model"].config.task_names == ["topic", "sentiment", "tags", "urgency"]


def test_adapter_by_hand_as_docs_transfer_tells(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, (_, code) = docs_blocks("Adapters")
    monkeypatch.chdir(tmp_path)
    tiny_model().eval().save_pretrained("outputs/vader")
    exec(compile(code, "transfer.md", "exec"), {})
    assert MTLModel.from_pretrained("outputs/vader-merged").predict("A great match.").keys() == {
        "topic", "sentiment", "tags", "valence"
    }  # fmt: skip


@pytest.mark.parametrize(
    "section", ["Freezing by schedule", "Smaller steps for lower layers", "Averaging the weights", "Adapters"]
)
def test_settings_of_docs_transfer_are_taken(section: str, tmp_path: Path) -> None:
    for line in docs_blocks(section)[0][1].splitlines():
        MTLTrainingArguments(str(tmp_path), use_cpu=True, **yaml.safe_load(line))

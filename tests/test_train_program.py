"""The program from a settings file to the saved, measured, shared model."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SaveBackbone, ToyRows
from hub_stand_in import HubStandIn, hub_env
from huggingface_hub import ModelCard
from transformers import AutoModel

import train_trainer
from modeling_mtl import MTLModel
from mtl.launch import without_tokens
from mtl.settings import parse_settings

ROOT = Path(__file__).parent.parent
WriteSettings = Callable[..., str]


@pytest.fixture
def write_settings(tmp_path: Path, toy_rows: ToyRows, backbone_dir: SaveBackbone) -> WriteSettings:
    """Gives a function that writes data and a settings file, and returns the file's path."""
    backbone = str(backbone_dir("bert"))
    for split, count, seed in (("train", 64, 0), ("dev", 30, 1), ("test", 30, 2)):
        lines = [json.dumps(row) for row in toy_rows(count, seed)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    def write(**changes: Any) -> str:
        settings = {
            "backbone": backbone,
            "data_dir": str(tmp_path),
            "tasks": [
                {"name": "topic"},
                {"name": "sentiment", "labels": ["negative", "neutral", "positive"]},
                {"name": "tags", "problem_type": "multi_label_classification"},
                {"name": "valence", "problem_type": "regression"},
            ],
            "sources": [
                {
                    "name": "toy",
                    "files": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"},
                    "labels": {name: name for name in ("topic", "sentiment", "tags", "valence")},
                }
            ],
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "logging_steps": 4,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "train_sampling_strategy": "group_by_length",
            "max_length": 32,
            "use_cpu": True,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**settings, **changes}))
        return str(path)

    return write


def test_run_prints_and_writes_what_it_promises(
    write_settings: WriteSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    card = {"license": "cc0-1.0", "language": ["en", "de"]}
    report = train_trainer.main([write_settings(**card), "--num_samples", "2"])
    shown = capfd.readouterr()
    text = shown.out + shown.err
    for expected in (
        "step 4/16  epoch 0.50  loss",
        "validation, epoch 1.00: loss",
        "validation, epoch 2.00: loss",
        "test: score",
        "2 sentences of test:",
        "predicted",
        "related    +",
        "unrelated  ",
    ):
        assert expected in text, expected
    saved = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)  # No NaN.
    assert saved["results"] == report["results"]
    assert saved["data"]["rows"] == {"train": 64, "validation": 30, "test": 30}
    assert set(saved["results"]) == {"validation", "test"}
    assert saved["parameters"]["trained"] == saved["parameters"]["total"]
    assert list(saved["chosen_on_validation"]) == ["calibration_temperature"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Chosen on these rows: the checkpoint (`load_best_model_at_end`); `calibration_temperature` of `" in text
    _check_card(tmp_path / "out", saved)
    _check_model(tmp_path / "out", saved)


def test_conflicts_reach_terminal_report_and_card(
    write_settings: WriteSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"aggregation": "pcgrad", "weighting": "dwa", "num_train_epochs": 1}
    report = train_trainer.main([write_settings(**changes), "--conflict_steps", "3"])
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["conflicts"] == report["conflicts"]
    assert [pair["count"] for pair in saved["conflicts"]["pairs"]] == [2] * 6  # Steps 3 and 6 of 8.
    assert saved["settings"]["aggregation"] == "pcgrad"
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (caplog.text, card):
        assert saved["conflicts"]["advice"] in text
        assert "| mean cosine (negative, count) | topic | sentiment | tags | valence | mean norm |" in text
    assert "| aggregation | pcgrad |" in card


def _check_card(folder: Path, report: dict[str, Any]) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model is None  # A folder of this machine is no name for anyone else.
    assert (card.data.license, card.data.language) == ("cc0-1.0", ["en", "de"])
    figures = {(result.task_name, result.metric_name): result.metric_value for result in card.data.eval_results}
    for task, metrics in report["results"]["test"]["tasks"].items():
        for metric, value in metrics.items():
            if metric not in ("support", "loss") and value is not None:
                assert figures[task, metric] == pytest.approx(value, abs=5e-5)
                assert f"| `{task}` | {metric} | {value:.4f} |" in card.text


def _check_model(folder: Path, report: dict[str, Any]) -> None:
    """The saved model gives the accuracy that the report claims."""
    model = MTLModel.from_pretrained(folder)
    rows = [json.loads(line) for line in (folder.parent / "test.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["topic"] is not None]
    predicted = [prediction["topic"]["label"] for prediction in model.predict([row["text"] for row in rows])]
    accuracy = sum(guess == row["topic"] for guess, row in zip(predicted, rows, strict=True)) / len(rows)
    assert accuracy == pytest.approx(report["results"]["test"]["tasks"]["topic"]["accuracy"])


def test_evaluation_only(write_settings: WriteSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write_settings(freeze="all", eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    report = train_trainer.main([settings])
    assert "nothing trains" in caplog.text
    assert "Measuring in " in caplog.text and "Training in " not in caplog.text
    assert report["training"] == {}
    assert report["parameters"]["trained"] == 0
    assert report["results"]["test"]["score"] is not None
    assert "Nothing was trained" in (tmp_path / "out" / "README.md").read_text()


def test_what_fails_after_the_training_does_not_cost_it(
    write_settings: WriteSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("too many rows")

    (tmp_path / "out").mkdir()
    for name in ("README.md", "report.json"):
        (tmp_path / "out" / name).write_text("of an earlier run")
    monkeypatch.setattr(train_trainer, "measure", fail)
    with pytest.raises(MemoryError):
        train_trainer.main([write_settings(save_strategy="no", load_best_model_at_end=False)])
    assert MTLModel.from_pretrained(tmp_path / "out").predict(["match team goal"])
    assert "No figures were recorded" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "report.json").exists()


def test_interrupted_after_the_training_says_where_the_model_is(
    write_settings: WriteSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_trainer, "measure", interrupt)
    with pytest.raises(SystemExit) as stop:
        train_trainer.cli([write_settings(save_strategy="no", load_best_model_at_end=False)])
    assert stop.value.code == 130
    assert f"interrupted. The training was over, and its model is in {tmp_path / 'out'}.\n" in capsys.readouterr().err


def test_a_saved_model_is_trained_further(write_settings: WriteSettings, tmp_path: Path) -> None:
    first = train_trainer.main([write_settings()])
    again = train_trainer.main(
        [
            write_settings(freeze="all", eval_strategy="no", save_strategy="no", load_best_model_at_end=False),
            *("--backbone", str(tmp_path / "out"), "--output_dir", str(tmp_path / "out2")),
        ]
    )
    assert again["results"]["test"]["tasks"] == first["results"]["test"]["tasks"]
    with pytest.raises(ValueError, match="was trained with pooling='mean', the settings ask for 'cls'"):
        train_trainer.main([write_settings(pooling="cls"), "--backbone", str(tmp_path / "out")])
    tasks = yaml.safe_load(Path(write_settings()).read_text())["tasks"]
    for change in ({"labels": ["positive", "neutral", "negative"]}, {"hidden_size": 8}):  # The same, in another order.
        changed = [tasks[0], {**tasks[1], **change}, *tasks[2:]]
        with pytest.raises(ValueError, match="the settings ask for"):
            train_trainer.main([write_settings(tasks=changed), "--backbone", str(tmp_path / "out")])


def test_run_with_adapter_and_average_is_measured_as_it_is_saved(
    write_settings: WriteSettings, tmp_path: Path
) -> None:
    settings = {"peft": {"peft_type": "LORA", "r": 4}, "average_weights": "ema:0.9", "save_adapter": True}
    report = train_trainer.main([write_settings(**settings)])
    assert report["parameters"]["trained"] < report["parameters"]["total"] / 2
    assert report["settings"]["peft"] == settings["peft"]
    again = train_trainer.main(
        [
            write_settings(freeze="all", eval_strategy="no", save_strategy="no", load_best_model_at_end=False),
            *("--backbone", str(tmp_path / "out"), "--output_dir", str(tmp_path / "out2")),
        ]
    )
    for split in ("validation", "test"):
        assert again["results"][split]["tasks"] == report["results"][split]["tasks"]
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()


def test_interrupted_run_goes_on(write_settings: WriteSettings, tmp_path: Path) -> None:
    unbroken = train_trainer.main([write_settings(output_dir=str(tmp_path / "unbroken"))])
    args = [write_settings(), "--resume_from_checkpoint", "last"]
    train_trainer.main([*args, "--num_train_epochs", "2"])  # Nothing to resume from yet: starts anew.
    (tmp_path / "out" / "checkpoint-16" / "optimizer.pt").unlink()  # As if stopped while it was saved.
    resumed = train_trainer.main(args)
    assert resumed["results"]["test"]["tasks"] == unbroken["results"]["test"]["tasks"]
    training, whole = resumed["training"], unbroken["training"]
    begun = training["resumed_at_step"]
    assert 0 < begun < training["steps"] == whole["steps"]
    assert "resumed_at_step" not in whole
    # Speed and loss are those of the steps since, as the time is.
    speed = (training["steps"] - begun) / training["train_runtime"]
    assert training["train_steps_per_second"] == pytest.approx(speed, rel=0.01)
    losses = [log["loss"] for log in resumed["history"] if "loss" in log and log["step"] > begun]
    assert training["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=0.05)


@pytest.mark.slow
def test_push_to_hub(write_settings: WriteSettings, tmp_path: Path) -> None:
    settings = write_settings(num_train_epochs=1)
    load = (
        "import sys; from transformers import AutoModel; "
        "model = AutoModel.from_pretrained('tester/toy', trust_remote_code=True); "
        "print(model.predict('match goal great')['topic']['label']); "
        "assert not {'mtl', 'modeling_mtl', 'train_trainer'} & set(sys.modules)"
    )
    with HubStandIn() as hub:
        command = [sys.executable, str(ROOT / "train_trainer.py"), settings, "--push_to_hub"]
        environment = hub_env(hub.endpoint, tmp_path / "pusher")
        done = subprocess.run(
            [*command, "--hub_model_id", "tester/toy", "--hub_token", "hf_dummy"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        files = hub.files("tester/toy")
        assert len(hub.commits("tester/toy")) == 2  # The repository's own first one, and ours.
        empty = tmp_path / "empty"
        empty.mkdir()
        environment = hub_env(hub.endpoint, tmp_path / "loader")
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-c", load], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert done.stdout.split()[-1] == model.predict("match goal great")["topic"]["label"]
    assert {
        "model.safetensors",
        "config.json",
        "modeling_mtl.py",
        "report.json",
        "README.md",
        "tokenizer.json",
    } <= set(files)
    assert not [name for name in files if name.startswith("checkpoint-") or name.endswith((".pt", ".bin"))]
    assert files["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert not [name for name, content in files.items() if b"hf_dummy" in content]
    assert b"--hub_token '<token>'" in files["README.md"]


def test_tokens_are_masked() -> None:
    argv = ["run.yaml", "--hub_token", "a", "--hub-token=b", "--output_dir", "token", "--push_to_hub"]
    shown = ["run.yaml", "--hub_token", "<token>", "--hub-token=<token>", "--output_dir", "token", "--push_to_hub"]
    assert without_tokens(argv) == shown


def test_length_that_the_encoder_does_not_take(write_settings: WriteSettings) -> None:
    with pytest.raises(ValueError, match="max_length is 65 tokens, but .* takes at most 64"):
        train_trainer.main([write_settings(max_length=65)])


def test_settings_reach_a_saved_model(write_settings: WriteSettings, tmp_path: Path) -> None:
    train_trainer.main([write_settings(num_train_epochs=1)])
    settings = write_settings(head_dropout=0.3, max_length=16, backbone_dropout=0.2, pooling="mean")
    run, args = parse_settings([settings, "--backbone", str(tmp_path / "out")])
    run.tasks[0]["weight"] = 0.25
    model = train_trainer.prepare(run, args).trainer.model
    assert [task.weight for task in model.config.tasks] == [0.25, 1.0, 1.0, 1.0]
    assert (model.dropout.p, model.config.max_seq_length) == (0.3, 16)
    assert model.config.text_config.hidden_dropout_prob == 0.2
    assert model.tokenizer is not None


def test_card_tells_what_ended_the_training(write_settings: WriteSettings, tmp_path: Path) -> None:
    saved = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    train_trainer.main([write_settings(max_steps=3, **saved)])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| max_steps | 3 |" in card
    assert "num_train_epochs" not in card  # They took no part.
    assert "Texts are cut at 32 tokens; of the 124 rows of the data above 0 texts were longer" in card
    assert "Data: toy; rows: train 64, validation 30, test 30." in card
    assert " s: 3 steps of 8 rows, 0.375 epochs, in " in card  # 64 rows are 8 steps.
    assert "gold_share" not in card and "| mixture |" not in card


def test_card_of_a_model_that_was_only_measured_shows_no_settings_of_training(
    write_settings: WriteSettings, tmp_path: Path
) -> None:
    train_trainer.main([write_settings(freeze="all", load_best_model_at_end=False)])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing was trained, the model was measured in " in card
    assert "learning_rate" not in card
    assert "Data: toy; rows: validation 30, test 30." in card
    assert "of the 60 rows of the data above" in card


def test_card_counts_what_a_schedule_lets_learn_and_tells_which_length_was_in_use(
    write_settings: WriteSettings, tmp_path: Path
) -> None:
    settings = yaml.safe_load(Path(write_settings(max_steps=3, eval_strategy="no", save_strategy="no")).read_text())
    del settings["max_length"]
    settings |= {"load_best_model_at_end": False, "freeze_schedule": {0: "backbone", 0.25: "none", 1: "heads:topic"}}
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump(settings))
    parameters = train_trainer.main([str(path)])["parameters"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        f"with {parameters['total']:,} of {parameters['total']:,} parameters learning in at least one phase of "
        "`freeze_schedule`, fewer at a time; those from epoch 1 on, which it did not reach, are counted too."
    ) in card
    assert "| max_length | 64 |" in card  # What the tokenizer takes.


def test_card_shows_what_is_seldom_set(write_settings: WriteSettings, tmp_path: Path) -> None:
    saved = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    teacher = str(tmp_path / "teacher")
    train_trainer.main([write_settings(max_steps=1, **saved), "--output_dir", teacher])
    changes = {"teacher": teacher, "teacher_annealing": True, "preserve_embeddings": 0.5, "mixture": "balanced"}
    train_trainer.main([write_settings(max_steps=1, **saved, **changes)])
    card = (tmp_path / "out" / "README.md").read_text()
    for line in ("| teacher_annealing | True |", "| preserve_embeddings | 0.5 |", "| mixture | balanced |"):
        assert line in card
    assert "gold_share" not in card  # It has no effect beside annealing.


def test_backbone_that_is_not_there(write_settings: WriteSettings) -> None:
    with pytest.raises(OSError, match="backbone 'outputs/none': there is no such folder in"):
        train_trainer.main([write_settings(backbone="outputs/none")])


def test_undefined_metric_does_not_cost_the_report(write_settings: WriteSettings, tmp_path: Path) -> None:
    # Without a labelled row that differs from the others, the correlation on validation is nan.
    path = tmp_path / "dev.jsonl"
    settings = write_settings(num_train_epochs=1)
    rows = [{**json.loads(line), "valence": 1.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_trainer.main([settings])
    saved = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved["results"]["validation"]["tasks"]["valence"]["pearson"] is None
    assert None in [entry.get("eval_valence_pearson", 0.0) for entry in saved["history"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 0.1}, "Did you mean 'learning_rate'?"),
        ({"tasks": [{"name": "tone"}]}, "Task 'tone' has no label column in any source"),
        ({"head_dropout": 1}, "error: head_dropout must be in [0, 1), found 1.0."),
        ({"resume_from_checkpoint": "nowhere"}, "error: 'nowhere' cannot be resumed from: there is no such folder"),
        ({"search": {"trials": 3}}, "error: search: there is no setting 'trials'."),
        ({"search": {"space": {"wight": [1, 2]}}}, "error: search: space has 'wight'."),
    ],
)
def test_on_the_command_line_bad_settings_give_a_message_and_no_traceback(
    write_settings: WriteSettings, changes: dict[str, Any], message: str
) -> None:
    path = write_settings()
    settings = yaml.safe_load(Path(path).read_text())
    if "tasks" in changes:
        settings["sources"][0]["labels"] = {}
    Path(path).write_text(yaml.safe_dump(settings | changes))
    ended = subprocess.run([sys.executable, "train_trainer.py", path], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert message in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--learning_rate", "high"], "argument --learning_rate/--learning-rate: invalid float value: 'high'"),
        (["--search", "{n_trials: 3}"], "'{n_trials: 3}' is no JSON, such as {\"key\": 1}, names in double quotes"),
    ],
)
def test_value_of_another_type_is_told_in_a_line(given: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_settings(given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_checkpoint_of_another_run_is_refused_before_training(write_settings: WriteSettings, tmp_path: Path) -> None:
    train_trainer.main([write_settings(num_train_epochs=1)])
    [checkpoint] = (tmp_path / "out").glob("checkpoint-*")
    with pytest.raises(ValueError, match="freeze"):
        train_trainer.set_up([write_settings(), "--freeze", "backbone", "--resume_from_checkpoint", str(checkpoint)])


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    assert "Dropout before the heads. (default: 0.1)" in capsys.readouterr().out


def test_program_says_what_is_saved_and_how_to_go_on(write_settings: WriteSettings, tmp_path: Path) -> None:
    path = write_settings(num_train_epochs=2000, save_strategy="no", load_best_model_at_end=False)
    command = [sys.executable, "train_trainer.py", path]
    told = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line)
            if "step 4/" in line:
                process.send_signal(signal.SIGINT)
    text = "".join(told)
    assert process.returncode == 130, text
    assert "a checkpoint is written after this step" in text
    [checkpoint] = (tmp_path / "out").glob("checkpoint-*")
    assert f"interrupted. The same command with `--resume_from_checkpoint last` goes on from {checkpoint}.\n" in text
    assert "Traceback" not in text

"""The YAML file, the command line over it, and what is said of a wrong key."""

from pathlib import Path
from typing import Any

import pytest

from mtl import argument_checks
from mtl.arguments import MTLTrainingArguments
from mtl.settings import parse_settings, resolve_backbone

YAML = """
tasks:
  - {name: topic}
sources:
  - {path: rows.csv, labels: {topic: topic}}
learning_rate: 2e-4
num_train_epochs: 3
load_best_model_at_end: false
output_dir: out
"""


@pytest.fixture
def settings_file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return str(path)


def test_file_gives_the_values(settings_file: str) -> None:
    run, args = parse_settings([settings_file])
    assert run.tasks == [{"name": "topic"}]
    assert args.learning_rate == 2e-4  # YAML itself reads 2e-4 as a string.
    assert args.num_train_epochs == 3
    assert args.output_dir == "out"
    assert args.metric_for_best_model is None, "No best model is to be found."


def test_yaml_reads_a_plain_no_as_false(settings_file: str) -> None:
    with open(settings_file, "a", encoding="utf-8") as file:
        file.write("eval_strategy: no\nsave_strategy: no\n")
    _, args = parse_settings([settings_file])
    assert (args.eval_strategy, args.save_strategy) == ("no", "no")


@pytest.mark.parametrize(
    ("typed", "metric", "greater"),
    [
        (["--load_best_model_at_end", "true", "--eval_strategy=epoch", "--save_strategy=epoch"], "score", True),
        (["--early_stopping_patience", "2", "--eval_strategy", "epoch"], "score", True),
        (["--metric_for_best_model", "valence_rmse"], "valence_rmse", False),
        (["--metric_for_best_model", "topic_loss"], "topic_loss", False),
        (["--metric_for_best_model", "valence_rmse", "--greater_is_better", "true"], "valence_rmse", True),
        (["--metric_for_best_model", "topic_f1_macro"], "topic_f1_macro", True),
    ],
)
def test_best_model_is_found_by_the_right_end_of_a_metric(
    typed: list[str], metric: str, greater: bool, settings_file: str
) -> None:
    _, args = parse_settings([settings_file, *typed])
    assert args.metric_for_best_model == metric
    assert args.greater_is_better is greater


@pytest.mark.parametrize(
    ("scheduler", "metric", "mode"),
    [
        ("reduce_lr_on_plateau", "score", "max"),
        ("reduce_lr_on_plateau", "loss", "min"),
        ("greedy", "valence_rmse", "min"),
        ("greedy", "score", "max"),
        ("linear", None, None),
    ],
)
def test_scheduler_that_watches_a_metric_knows_which_end_is_better(
    scheduler: str, metric: str | None, mode: str | None, settings_file: str
) -> None:
    typed = [] if metric in ("score", None) else ["--metric_for_best_model", str(metric)]
    _, args = parse_settings([settings_file, "--lr_scheduler_type", scheduler, "--eval_strategy=epoch", *typed])
    assert args.metric_for_best_model == metric
    kwargs: Any = args.lr_scheduler_kwargs or {}
    assert kwargs.get("mode") == mode


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("backbone: 5", "backbone must be text, found 5"),
        ("freeze: true", "freeze must be text, found True"),
        ("tasks: [topic]", "`tasks` must be a list of mappings"),
        ("sources: {path: rows.csv}", "`sources` must be a list of mappings"),
        ("\ttasks: []", "is no YAML"),
    ],
)
def test_slips_in_the_file_are_told(line: str, message: str, tmp_path: Path) -> None:
    lines = [known for known in ("tasks: [{name: a}]", "sources: [{path: b.csv}]") if known[:5] != line[:5]]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "output_dir: out", line]))
    with pytest.raises(ValueError, match=message):
        parse_settings([str(tmp_path / "run.yaml")])


def test_resuming_from_models_alone_is_refused(settings_file: str) -> None:
    with pytest.raises(ValueError, match="needs the optimizer's state"):
        parse_settings([settings_file, "--save_only_model", "true", "--resume_from_checkpoint", "last"])


def test_batches_of_an_evaluation_that_stay_apart_are_refused(settings_file: str) -> None:
    with pytest.raises(ValueError, match="eval_do_concat_batches=False is not supported"):
        parse_settings([settings_file, "--eval_do_concat_batches", "false"])


def test_push_of_checkpoints_is_refused(settings_file: str) -> None:
    with pytest.raises(ValueError, match="hub_strategy='every_save' is not supported"):
        parse_settings([settings_file, "--hub_strategy", "every_save"])


def test_metadata_of_the_card_is_what_the_hub_takes(settings_file: str) -> None:
    content = Path(settings_file).read_text()
    for language in ("en", "[en]"):
        Path(settings_file).write_text(f"{content}\nlanguage: {language}\nlicense: cc-by-4.0\n")
        settings, _ = parse_settings([settings_file])
        assert settings.language == ["en"]
    with pytest.raises(ValueError, match="license is 'CC BY 4.0', but the Hub takes names in lower case"):
        parse_settings([settings_file, "--license", "CC BY 4.0"])
    Path(settings_file).write_text(f"{content}\nlanguage: [no]\n")
    with pytest.raises(ValueError, match="language.*False"):
        parse_settings([settings_file])


def test_command_line_wins_over_the_file_and_only_where_typed(settings_file: str) -> None:
    run, args = parse_settings([settings_file, "--learning_rate", "5e-5", "--freeze=backbone", "--max-length", "64"])
    assert args.learning_rate == 5e-5
    assert args.freeze == "backbone"
    assert args.num_train_epochs == 3
    assert run.max_length == 64


def test_command_line_alone() -> None:
    run, args = parse_settings(
        ["--tasks", '{"name": "topic", "labels": ["a", "b"]}', "--sources", '{"path": "x.csv"}', "--output_dir", "o"]
    )
    assert run.task_configs()[0].labels == ("a", "b")
    assert run.sources == [{"path": "x.csv"}]
    assert args.output_dir == "o"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learnin_rate", "1"], "'learnin_rate' on the command line. Did you mean 'learning_rate'"),
        (["--learnin-rate=1"], "Did you mean 'learning_rate'"),
        (["--learning", "1"], "'learning' on the command line"),
        (["--xyzzy", "1"], "--help` lists them all"),
    ],
)
def test_misspelt_key_on_the_command_line(settings_file: str, argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings([settings_file, *argv])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("poolin: mean", "There is no setting 'poolin' in .*run.yaml. Did you mean 'pooling'"),
        ("max_length: long", "max_length='long' does not fit"),
        ("max_length: 12.5", "max_length must be a int, found 12.5"),
        ("seed: true", "seed must be a int, found True"),
        ("precision: fp8", "precision 'fp8' is unknown"),
        ("label_smoothing_factor: 1.0", r"label_smoothing_factor must be in \[0, 1\), found 1.0"),
        ("head_learning_rate: -1.0", "head_learning_rate must be a number of at least 0, found -1.0"),
        ("head_learning_rate: .nan", "head_learning_rate must be a number of at least 0, found nan"),
        ("per_device_eval_batch_size: 0", "per_device_eval_batch_size must be a number of at least 1, found 0"),
        ("early_stopping_patience: 0", "early_stopping_patience must be a number of at least 1, found 0"),
        ("early_stopping_patience: 2", "counts evaluations, but eval_strategy is .no."),
        ("search: 5", "`search` must be a mapping"),
        ("learning_rate: 3e-4", "key 'learning_rate' stands twice in one mapping"),
        (
            "train_sampling_strategy: length",
            "run.yaml: train_sampling_strategy 'length' is unknown. Use one of .'r",
        ),
        ("log_level: loud", "run.yaml: log_level 'loud' is unknown. Use one of .*'warning'"),
        ("eval_strategy: true", "run.yaml: eval_strategy True is unknown. Use one of .'no', 'steps', 'epoch'"),
        ("seed:", "run.yaml: seed has no value. Give it one, or leave the line out"),
        ("pooling:", "run.yaml: pooling has no value"),
        ("remove_unused_columns: 5", "remove_unused_columns must be a bool, found 5"),
        ("remove_unused_columns: perhaps", "remove_unused_columns='perhaps' does not fit"),
        ("lr_scheduler_kwargs: 5", "lr_scheduler_kwargs must be text, found 5"),
        ("lr_scheduler_kwargs: '{a: 1}'", "lr_scheduler_kwargs='{a: 1}' is no JSON, such as"),
        ("lr_scheduler_kwargs: {power: 2}", "does not fit lr_scheduler_type='linear': .* argument 'power'"),
        (
            "lr_scheduler_type: cosine_with_min_lr",
            "lr_scheduler_kwargs=None does not fit .* min_lr_rate should",
        ),
        ("accelerator_config: {split: true}", "accelerator_config={'split': True} does not fit: .*'split_batches'"),
        ("report_to: no_such_service", "report_to 'no_such_service' is unknown. Use one of .'none', 'all'"),
        ("report_to:", "report_to None is unknown"),
    ],
)
def test_faults_of_the_file(settings_file: str, line: str, message: str) -> None:
    path = Path(settings_file)
    path.write_text(f"{YAML}{line}\n")
    with pytest.raises(ValueError, match=message):
        parse_settings([settings_file])


def test_mappings_that_the_command_line_has_as_json_may_be_mappings(settings_file: str) -> None:
    mappings = "lr_scheduler_kwargs: {min_lr: 1e-6}\naccelerator_config: {even_batches: false}\nreport_to: [none]\n"
    Path(settings_file).write_text(f"{YAML}lr_scheduler_type: cosine_with_min_lr\n{mappings}")
    _, args = parse_settings([settings_file])
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-6}  # YAML itself reads 1e-6 as a string.
    assert vars(args.accelerator_config)["even_batches"] is False
    assert args.report_to == []
    _, args = parse_settings([settings_file, "--lr_scheduler_kwargs", '{"min_lr": 2e-6}'])
    assert args.lr_scheduler_kwargs == {"min_lr": 2e-6}


@pytest.mark.parametrize(("word", "value"), [("true", "true"), ("no", "false"), ("auto", "auto")])
def test_choices_that_yaml_reads_as_bools(word: str, value: str, settings_file: str) -> None:
    Path(settings_file).write_text(f"{YAML}cache_embeddings: {word}\n")
    assert parse_settings([settings_file])[1].cache_embeddings == value


def test_service_to_report_to_that_is_not_installed_is_told(
    settings_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(argument_checks, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ImportError, match="report_to='wandb' needs `pip install wandb`. Install it, or set"):
        parse_settings([settings_file, "--report_to", "wandb"])
    with pytest.raises(ImportError, match=r'needs `pip install "mtl-sentence-transformers\[tracking\]"`'):
        parse_settings([settings_file, "--report_to", "trackio"])
    _, args = parse_settings([settings_file, "--report_to", "tensorboard"])
    assert args.report_to == ["tensorboard"]


def test_fp16_is_refused_on_a_cpu_where_it_would_be_passed_over(settings_file: str) -> None:
    with pytest.raises(ValueError, match="fp16=True has no effect on a CPU.*or set `precision: bf16`"):
        parse_settings([settings_file, "--fp16", "true", "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("name", "choices"),
    [("train_sampling_strategy", "'sequential', 'group_by_length'"), ("log_level_replica", "'info'")],
)
def test_unknown_choices_are_refused_in_python_too(name: str, choices: str, tmp_path: Path) -> None:
    wrong: Any = {name: "length"}
    with pytest.raises(ValueError, match=f"{name} 'length' is unknown. Use one of .*{choices}"):
        MTLTrainingArguments(output_dir=str(tmp_path), **wrong)


def test_help_says_how_to_go_on_from_the_last_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    assert "last: the newest whole one" in " ".join(capsys.readouterr().out.split())


def test_misspelt_key_of_a_task(settings_file: str) -> None:
    path = Path(settings_file)
    path.write_text(YAML.replace("{name: topic}", "{name: topic, lables: [a, b]}"))
    run, _ = parse_settings([settings_file])
    with pytest.raises(ValueError, match="'lables' of task 'topic'. Did you mean 'labels'"):
        run.task_configs()


def test_task_without_a_name(settings_file: str) -> None:
    path = Path(settings_file)
    path.write_text(YAML.replace("{name: topic}", "{problem_type: regression}"))
    run, _ = parse_settings([settings_file])
    with pytest.raises(ValueError, match="A task has no `name`; found .'problem_type': 'regression'"):
        run.task_configs()


def test_keys_merged_in_yaml_may_be_overridden(settings_file: str) -> None:
    path = Path(settings_file)
    merged = "{<<: {name: topic, weight: 2.0}, weight: 3.0}"
    path.write_text(YAML.replace("{name: topic}", merged))
    run, _ = parse_settings([settings_file])
    assert run.tasks == [{"name": "topic", "weight": 3.0}]


def test_no_file_and_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no settings file"):
        parse_settings([str(tmp_path / "none.yaml")])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="expected `key: value` lines, found list"):
        parse_settings([str(tmp_path / "list.yaml")])


def test_tasks_and_sources_are_needed() -> None:
    with pytest.raises(ValueError, match="No tasks are given"):
        parse_settings(["--output_dir", "o"])


def test_embedded_backbone_is_a_folder_and_other_names_stay() -> None:
    assert (Path(resolve_backbone("embedded")) / "model.safetensors").is_file()
    assert resolve_backbone("distilbert/distilbert-base-uncased") == "distilbert/distilbert-base-uncased"


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.parent.glob("configs/*.yaml")), ids=lambda path: path.stem
)
def test_every_ready_made_config_parses(path: Path) -> None:
    run, _ = parse_settings([str(path)])
    assert run.task_configs()

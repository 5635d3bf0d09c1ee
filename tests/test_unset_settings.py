"""What a settings file sets, taken back on the command line."""

from pathlib import Path
from typing import Any

import pytest

from mtl.settings import parse_settings


@pytest.fixture
def settings_file(tmp_path: Path) -> str:
    """Gives a file with what has to be in one."""
    path = tmp_path / "run.yaml"
    path.write_text("tasks: [{name: topic}]\nsources: [{path: rows.csv, labels: {topic: topic}}]\noutput_dir: out\n")
    return str(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_decay", "0.9"),
        ("average_weights", "ema:0.99"),
        ("head_learning_rate", "1e-3"),
        ("freeze_schedule", '{"0": "backbone", "1": "none"}'),
        ("early_stopping_patience", "2"),
        ("max_length", "64"),
        ("language", "[en, de]"),
        ("license", "mit"),
        ("calibrate", "true"),
        ("dataloader_multiprocessing_context", "fork"),
    ],
)
def test_none_takes_back_what_the_file_sets(name: str, value: str, settings_file: str) -> None:
    with open(settings_file, "a", encoding="utf-8") as file:
        file.write(f"eval_strategy: epoch\n{name}: {value}\n")

    def found(*typed: str) -> Any:
        return next(getattr(some, name) for some in parse_settings([settings_file, *typed]) if hasattr(some, name))

    assert found() is not None
    assert found(f"--{name}", "none") is None
    assert found(f"--{name}=none") is None
    text = Path(settings_file).read_text().replace(f"{name}: {value}", f"{name}: none")
    Path(settings_file).write_text(text)
    assert found() is None


def test_none_is_no_value_of_what_must_be_given(settings_file: str) -> None:
    with pytest.raises(ValueError, match="--learning_rate/--learning-rate: invalid float value: 'none'"):
        parse_settings([settings_file, "--learning_rate", "none"])
    _, args = parse_settings([settings_file, "--freeze", "none", "--report_to", "none"])
    assert args.freeze == "none"  # A setting of its own: everything learns.
    assert args.report_to == []


@pytest.mark.parametrize(
    ("line", "typed", "freeze", "schedule"),
    [
        ("freeze: backbone", ["--freeze_schedule", '{"0": "none"}'], None, {"0": "none"}),
        ("freeze_schedule: {0: backbone}", ["--freeze", "lower_layers:1"], "lower_layers:1", None),
        ("freeze_schedule: {0: backbone}", ["--freeze", "none"], "none", None),
        ("freeze: backbone", ["--freeze_schedule", "none"], "backbone", None),
    ],
)
def test_command_line_wins_over_the_other_way_to_freeze(
    line: str, typed: list[str], freeze: str | None, schedule: Any, settings_file: str
) -> None:
    with open(settings_file, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    _, args = parse_settings([settings_file, *typed])
    assert (args.freeze, args.freeze_schedule) == (freeze, schedule)


def test_both_ways_to_freeze_in_one_place(settings_file: str) -> None:
    with pytest.raises(ValueError, match="freeze='backbone' and freeze_schedule are both given"):
        parse_settings([settings_file, "--freeze", "backbone", "--freeze_schedule", '{"0": "none"}'])

"""The command `mtl`: which program each name runs, and what a wrong name is told."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mtl.cli

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", mtl.cli.COMMANDS)
def test_command_hands_its_arguments_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(importlib.import_module(mtl.cli.COMMANDS[name][0]), "cli", seen.append)
    mtl.cli.main([name, "settings.yaml", "--seed", "1", "--help"])
    assert seen == [["settings.yaml", "--seed", "1", "--help"]]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        mtl.cli.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name, (_, does) in mtl.cli.COMMANDS.items():
        assert name in shown
        assert does in shown


@pytest.mark.parametrize("argv", [[], ["fly"]])
def test_wrong_command_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        mtl.cli.main(argv)
    assert stop.value.code == 2
    assert "command" in capsys.readouterr().err


def test_no_command_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mtl.cli.main([])
    shown = capsys.readouterr().err
    assert all(does in shown for _, does in mtl.cli.COMMANDS.values())


def test_interrupted_command_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtl.commands.report.cli", interrupted)
    with pytest.raises(SystemExit) as stop:
        mtl.cli.main(["report", "outputs"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "mtl report: interrupted.\n"


def test_reader_that_has_had_enough_gets_no_traceback() -> None:
    code = (
        "import sys, types, mtl.cli; sys.modules['talk'] = talk = types.ModuleType('talk'); "
        "talk.cli = lambda argv: print('word ' * 100_000); mtl.cli.COMMANDS['report'] = ('talk', ''); "
        "mtl.cli.main(['report'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_program_tells_wrong_settings_without_a_traceback() -> None:
    with pytest.raises(SystemExit, match="train_trainer.py: error: There is no settings file"):
        mtl.cli.main(["train", "absent.yaml"])

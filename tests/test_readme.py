"""Every block of code in the README runs."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.settings import parse_settings, resolve_backbone
from tasks_mtl import REGRESSION

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line.strip() for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line.strip()]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives a folder with what the blocks read: a model as `make train` leaves it, and a CSV file."""
    tasks = [
        TaskConfig("topic", labels=("movie_review", "news_editorial", "product_review", "tweet")),
        TaskConfig("sentiment", labels=("negative", "neutral", "positive")),
        TaskConfig("valence", REGRESSION),
    ]
    MTLModel.from_backbone(resolve_backbone("embedded"), tasks=tasks).save_pretrained(tmp_path / "outputs" / "vader")
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "topic", "stars"])
        for number in range(60):
            topic = ("phone", "film")[number % 2]
            writer.writerow([f"A {topic} like number {number}.", topic if number % 5 else "", number % 5 or ""])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_has_blocks() -> None:
    assert len(PYTHON) == 2
    assert {language for language, _ in BLOCKS} == {"python", "bash"}


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=["use", "train"])
def test_python_block_runs(code: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("python ")])
def test_program_takes_its_command_lines(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, program, *argv = shlex.split(line, comments=True)
    assert Path(program).is_file()
    parse_settings(argv)


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for path in ["README.md", "CONTRIBUTING.md", *(str(file.relative_to(ROOT)) for file in ROOT.glob("docs/*.md"))]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / path).read_text(encoding="utf-8")):
            assert ((ROOT / path).parent / link).exists(), f"{path}: {link}"

"""The benchmark of freezing, on toy rows and a tiny encoder: what it plans, measures, keeps and shows."""

import json
import math
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import SaveBackbone, ToyRows
from datasets import Dataset
from documents import settings_that_count, write_between

from modeling_mtl import MTLModel
from tasks_mtl import TaskConfig

ROOT = Path(__file__).resolve().parents[1]
# By path: another installed package may bring a module `benchmarks`.
FREEZING = runpy.run_path(str(ROOT / "benchmarks" / "freezing.py"))
CACHE = runpy.run_path(str(ROOT / "benchmarks" / "embedding_cache.py"))
INTENTS = runpy.run_path(str(ROOT / "benchmarks" / "intents.py"))
TEACHERS = runpy.run_path(str(ROOT / "benchmarks" / "teachers.py"))
COMPARE = runpy.run_path(str(ROOT / "benchmarks" / "compare.py"))
EMBEDDED = runpy.run_path(str(ROOT / "benchmarks" / "embedded.py"))
CONFIG = {"learning_rate": 2e-4, "head_learning_rate": 1e-3, "seed": 0}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def settings_file(tmp_path: Path, backbone_dir: SaveBackbone, toy_rows: ToyRows) -> Path:
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")}
    for seed, file in enumerate(files.values()):
        file.write_text("".join(json.dumps(row) + "\n" for row in toy_rows(40, seed)), encoding="utf-8")
    names = ("topic", "sentiment", "valence")
    tasks = [{"name": name} for name in names[:2]] + [{"name": "valence", "problem_type": "regression"}]
    source = {"files": {split: str(file) for split, file in files.items()}, "labels": {name: name for name in names}}
    training = {"per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length", "use_cpu": True}
    config = {**CONFIG, **training, "backbone": str(backbone_dir("bert")), "tasks": tasks, "sources": [source]}
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture
def run(settings_file: Path, tmp_path: Path) -> Run:
    def run_benchmark(*options: str, max_steps: int = 2) -> dict[str, Any]:
        common = ["--settings", str(settings_file), "--max_steps", str(max_steps), "--limit", "16"]
        places = ["--output", str(tmp_path / "freezing.json"), "--work_dir", str(tmp_path / "work")]
        return FREEZING["main"]([*common, *places, *options])

    return run_benchmark


def plan(*strategies: str, repeats: int = 1, **settings: Any) -> list[Any]:
    return FREEZING["plan"](strategies, repeats, {"config": CONFIG, **settings}, Path("work"))


def test_plan_has_every_start_once_and_before_what_goes_on_from_it() -> None:
    jobs = plan("none/heads_except:a", "none", "none/backbone", repeats=2)
    names = ["none", "none/heads_except:a", "none/backbone"]
    assert [(job.strategy, job.seed) for job in jobs] == [(name, seed) for seed in (0, 1) for name in names]
    assert [job.start for job in jobs] == [start for job in (jobs[0], jobs[3]) for start in (None, *[job.folder] * 2)]


def test_plan_gives_each_kind_of_training_its_rates() -> None:
    rates = {job.strategy: [float(rate) for rate in job.rates[1::2]] for job in plan("backbone", "none/backbone")}
    assert rates["none"] == [2e-4, 1e-3]
    assert rates["backbone"] == pytest.approx([2e-4, 1e-3 * FREEZING["FROZEN_BACKBONE_FACTOR"]])
    assert rates["none/backbone"] == pytest.approx([5e-5, 2.5e-4])


def test_folder_is_another_one_for_other_settings() -> None:
    folders = {plan("none/none", max_steps=steps)[1].folder for steps in (None, 2, 2, 3)}
    assert len(folders) == 3


@pytest.mark.slow
def test_measures_goes_on_and_shows(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run("--strategies", "none/heads_except:sentiment")
    assert json.loads((tmp_path / "freezing.json").read_text()) == report
    full, one_head = report["runs"]
    assert [full["strategy"], one_head["strategy"]] == ["none", "none/heads_except:sentiment"]
    for record in (full, one_head):
        assert record["training"]["steps"] == 2
        assert record["training"]["tokens"] > 0
        assert record["training"]["tokens_per_second"] > 0
        assert record["peak_memory_mib"] > 0
        assert record["versions"].keys() >= {"torch", "transformers"}
        assert record["machine"]["threads"] > 0
        assert record["results"]["validation"]["rows"] == record["results"]["test"]["rows"] == 16
        assert record["results"]["test"]["tasks"].keys() == {"topic", "sentiment", "valence"}
    assert full["parameters"]["trained"] == full["parameters"]["total"]
    # Of a linear head, weights and biases: 3 topics and 1 valence, on 32 numbers.
    assert full["parameters"]["trained"] - one_head["parameters"]["trained"] == 4 * 33
    goes_on_and_shows(run, report, tmp_path, capsys)


def goes_on_and_shows(run: Run, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("--strategies", "none", "none/heads_except:sentiment") == report
    assert "2 trainings, 2 of them done before." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="measured with other settings"):
        run("--strategies", "none", max_steps=3)
    run("--table")
    printed = capsys.readouterr().out
    assert "| `none` |" in printed
    assert "A trial run" in printed
    document = tmp_path / "transfer.md"
    document.write_text((ROOT / "docs" / "transfer.md").read_text(encoding="utf-8"), encoding="utf-8")
    for _ in range(2):
        run("--write", str(document))
        begin, end = (
            document.read_text(encoding="utf-8").partition(f"<!-- freezing:{name} -->")[2] for name in ("begin", "end")
        )
        assert begin == f"\n\n{printed.strip()}\n\n<!-- freezing:end -->{end}"


def test_all_frozen_is_evaluated_only(settings_file: Path, tmp_path: Path) -> None:
    measure = runpy.run_path(str(ROOT / "benchmarks" / "freezing_run.py"))["measure"]
    arguments = [str(settings_file), "--freeze", "all", "--output_dir", str(tmp_path), "--disable_tqdm", "true"]
    record = measure(arguments, limit=8)
    assert record["training"] is None
    assert record["parameters"]["trained"] == 0
    assert record["results"]["test"]["rows"] == 8


def record(strategy: str, seed: int, seconds: float | None, valence: float | None) -> dict[str, Any]:
    training = {"steps": 7, "seconds": seconds, "tokens": 10, "tokens_per_second": 1234.5}
    result = {"rows": 2000, "score": 0.5, "tasks": {"topic": 0.9, "valence": valence}}
    return {
        "strategy": strategy,
        "seed": seed,
        "parameters": {"trained": 250 if seconds else 0, "total": 1000},
        "training": training if seconds else None,
        "peak_memory_mib": 700.0,
        "primary_metrics": {"topic": "accuracy", "valence": "pearson"},
        "results": {"validation": result, "test": result},
        "precision": "fp32",
        "versions": {"torch": "2", "transformers": "5"},
        "machine": {"cpu": "a processor", "threads": 2, "device": "cpu"},
    }


def test_tables_of_several_seeds() -> None:
    runs = [record("all", 0, None, None), record("all", 1, None, 0.1)]
    runs += [record("backbone", 0, 50.0, 0.5), record("backbone", 1, 50.0, 0.5)]
    runs += [record("none", 0, 90.0, 0.7), record("none", 1, 110.0, 0.8)]
    lines = FREEZING["tables"]({"settings": {"max_steps": None, "limit": None}, "runs": runs}).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["`none`", "`backbone`", "`all`"]
    assert lines[2] == "| `none` | 250 | 25.00 % | 100 ± 14 | 1.00 | 1,234 ± 0 | 700 ± 0 |"
    assert lines[3].split(" | ")[4] == "0.50"
    assert lines[4] == "| `all` | 0 | 0.00 % | - | - | - | 700 ± 0 |"
    assert lines[8].split(" | ")[2] == "0.750 ± 0.071 / 0.750 ± 0.071"
    assert lines[10].split(" | ")[2] == "0.100 / 0.100"
    assert lines[-1].startswith(
        "Quality is validation / test, on 2,000 / 2,000 rows. Mean ± standard deviation over 2 seeds;"
    )
    assert "trial run" not in lines[-1]


def test_document_without_markers_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "other.md"
    document.write_text("# No markers\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the lines"):
        write_between(document, "<!-- freezing:begin -->", "<!-- freezing:end -->", "text")


def test_table_of_the_embedded_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def figures(accuracy: float, pearson: float) -> dict[str, Any]:
        tasks = {"topic": {"accuracy": accuracy}, "sentiment": {"accuracy": 0.8}, "valence": {"pearson": pearson}}
        return {
            "results": {"test": {"tasks": tasks}},
            "training": {"train_runtime": 360.4},
            "precision": "fp32",
            "peak_memory_mib": 1800.2,
            "versions": {"torch": "2", "transformers": "5"},
            "machine": {"cpu_count": 2, "platform": "Linux"},
        }

    output, document = tmp_path / "embedded.json", tmp_path / "README.md"
    config = settings_that_count(ROOT / "configs" / "vader.yaml")
    assert not {"license", "language"} & {*config, *(key for source in config["sources"] for key in source)}
    settings = {"config": config, "overrides": []}
    runs = {"1": figures(0.94, 0.85), "0": figures(0.96, 0.87)}
    output.write_text(json.dumps({"settings": settings, "runs": runs}))
    document.write_text("before\n<!-- embedded:begin -->\nold\n<!-- embedded:end -->\nafter\n")
    EMBEDDED["main"](["--seeds", "0", "1", "--output", str(output), "--write", str(document)])  # Nothing left to run.
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| 0 | 0.9600 | 0.8000 | 0.8700 | 360 | 1800 |"
    assert lines[4] == "| mean | 0.9500 | 0.8000 | 0.8600 | | |"
    written = document.read_text()
    assert written.startswith("before\n<!-- embedded:begin -->\n\n| seed |")
    assert written.endswith("<!-- embedded:end -->\nafter\n")
    assert "old" not in written
    with pytest.raises(SystemExit, match="lacks the lines"):
        EMBEDDED["main"](["--seeds", "0", "--output", str(output), "--write", str(output)])
    with pytest.raises(SystemExit, match="other settings"):
        EMBEDDED["main"](["--seeds", "0", "--output", str(output), "--", "--learning_rate", "1"])


def test_tries_are_compared_by_validation(tmp_path: Path) -> None:
    def runs(*values: tuple[float, float]) -> dict[str, Any]:
        def tasks(value: float) -> dict[str, Any]:
            return {"tasks": {task: {"accuracy": value, "loss": value / 2} for task in ("clinc", "hwu", "banking")}}

        splits = [{"validation": tasks(validation), "test": tasks(test)} for validation, test in values]
        return {str(seed): {"results": results} for seed, results in enumerate(splits)}

    config = settings_that_count(ROOT / INTENTS["SETTINGS"])
    earlier = {key: value for key, value in config.items() if key != "average_weights"} | {"weight_decay": 0.5}
    tasks_and_one = [*map(json.dumps, config["tasks"]), '{"name": "space"}']
    overrides = ["--num_train_epochs", "2e1", "--teacher", "a", "b", "--tasks", *tasks_and_one]
    base = {"settings": {"config": config, "overrides": []}, "runs": runs((0.5, 0.9), (0.7, 0.8))}
    longer = {"settings": {"config": earlier, "overrides": overrides}, "runs": runs((0.7, 0.6))}
    whole = {"settings": {"config": config, "overrides": ["--validation_fraction", "0"]}, "runs": runs((0.9, 0.9))}
    del whole["runs"]["0"]["results"]["validation"]["tasks"]["banking"]["accuracy"]
    del whole["runs"]["0"]["results"]["validation"]["tasks"]["banking"]["loss"]
    reports = {"intents": base, "intents-longer": longer, "intents-whole": whole, "embedded": {}}
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    document = tmp_path / "tries.md"
    document.write_text("<!-- tries:begin -->\n<!-- tries:end -->\n")
    INTENTS["main"](["--output", str(tmp_path / "intents.json"), "--compare", str(document)])
    lines = document.read_text().splitlines()
    others = '`num_train_epochs: 20`, `weight_decay: 0.5`, `teacher: ["a", "b"]`, no `average_weights`'
    others = '`tasks: ... [{"name": "space"}]`, ' + others
    assert lines[4] == f"| {others} | 1 | 0.7000 | 0.7000 | 0.7000 | 0.3500 | 0.6000 | 0.6000 | 0.6000 |"
    assert lines[5] == "| none | 2 | 0.6000 | 0.6000 | 0.6000 | 0.3000 | 0.8500 | 0.8500 | 0.8500 |"
    whole_cells = "0.9000 | 0.9000 | - | - | 0.9000 | 0.9000 | 0.9000 |"  # It cannot be compared, so it comes last.
    assert lines[6] == f"| `validation_fraction: 0` | 1 | {whole_cells}"
    with pytest.raises(SystemExit):
        INTENTS["main"](["--seeds", "0"])  # Without data.


def test_groups_of_teachers_by_hand() -> None:
    task = TaskConfig("clinc", labels=("a", "b"), out_of_scope_label="oos")
    said = [[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]]
    figures = TEACHERS["figures"](Dataset.from_dict({"label_clinc": [0, 1, -1], "teacher_clinc": said}), task)
    assert figures == {"accuracy": 0.5, "loss": pytest.approx(-math.log(0.9 * 0.4) / 2), "rows": 2}
    report = [{"teachers": ["x", "y"], "tasks": {"clinc": figures, "hwu": {"accuracy": 1.0, "loss": 0.25}}}]
    assert TEACHERS["table"](report).splitlines()[-1] == "| `x`, `y` | 0.5000 | 0.5108 | 1.0000 | 0.2500 |"


def test_groups_of_teachers_are_asked_and_averaged(
    tmp_path: Path, backbone_dir: SaveBackbone, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"clinc": ("intent", "domain"), "hwu": ("intent", "scenario")}
    for name, folder in (("clinc", "clinc150"), ("hwu", "hwu64")):
        rows = [{"text": f"{word} {split}", "split": split} for split in ("train", "validation") for word in "ab"]
        cells = [row | dict.fromkeys(labels[name], row["text"][0]) for row in rows]
        (tmp_path / folder).mkdir()
        pq.write_table(pa.Table.from_pylist(cells), tmp_path / folder / f"{folder}.parquet")
    tasks = [TaskConfig(name, labels=("a", "b")) for name in ("clinc", "hwu")]
    tasks[0] = replace(tasks[0], out_of_scope_label="oos")
    folders = [str(tmp_path / "one"), str(tmp_path / "other")]
    for folder, favoured in zip(folders, (0, 1), strict=True):
        model = MTLModel.from_backbone(backbone_dir("bert"), tasks=tasks)
        heads: list[Any] = list(model.heads.values())
        for head in heads:
            torch.nn.init.zeros_(head.out_proj.weight)
            head.out_proj.bias.data = torch.eye(2)[favoured] * math.log(3)  # Says 3/4 and 1/4 of every text.
        model.save_pretrained(folder)
    options = ["--data-dir", str(tmp_path), "--output", str(tmp_path / "teachers.json")]
    TEACHERS["main"]([folders[0], ",".join(folders), *options])
    alone, both = capsys.readouterr().out.splitlines()[2:]
    loss = -math.log(0.75 * 0.25) / 2
    assert alone == f"| `{folders[0]}` | 0.5000 | {loss:.4f} | 0.5000 | {loss:.4f} |"
    assert both == f"| `{folders[0]}`, `{folders[1]}` | 0.5000 | 0.6931 | 0.5000 | 0.6931 |"
    TEACHERS["main"](["--output", str(tmp_path / "teachers.json")])  # Shows what was measured.
    assert both in capsys.readouterr().out


def test_table_of_the_cache_by_hand() -> None:
    machine = {"threads": 2, "cpu": "a processor"}
    common = {"rows": 1000, "precision": "fp32", "machine": machine}

    def epochs(*seconds: float, preparing: float) -> dict[str, Any]:
        return {
            **common,
            "preparing_seconds": preparing,
            "epoch_seconds": seconds,
            "test": {"topic": 0.5, "score": 0.5},
        }

    slow = [epochs(9.0, 8.0, preparing=0.0), epochs(9.0, 10.0, preparing=0.0), epochs(9.0, 30.0, preparing=0.0)]
    fast = [epochs(0.5, 0.2, preparing=7.0), epochs(0.5, 0.4, preparing=8.0), epochs(0.5, 0.5, preparing=9.0)]
    runs = {"cache_embeddings: false": slow, "cache_embeddings: true": fast}
    for number, name in enumerate(CACHE["STRATEGIES"], start=1):
        runs[f"freeze: {name}"] = [{"step_ms": 100.0 / number, "peak_memory_mib": 2000.0 / number}] * 3
    lines = CACHE["tables"]({"settings": {"limit": None}, "runs": runs}).splitlines()
    # 8 / 0.2 = 40, 10 / 0.4 = 25 and 30 / 0.5 = 60: the median is 40.
    assert lines[3] == "| `cache_embeddings: true` | 8.0 | 0.5 | 0.40 | 40x | 0.5000 | 0.5000 |"
    assert "| `lower_layers:0` | 50 | 0.50 | 1,000 | 0.50 |" in lines
    assert "Medians of 3 runs" in lines[-1]


@pytest.mark.slow
def test_comparison_is_kept_and_written(
    tmp_path: Path, settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "comparison.md"
    document.write_text("<!-- compare-vader:begin -->\n<!-- compare-vader:end -->\n")
    output = tmp_path / "results" / "compare-vader.json"
    COMPARE["SETTINGS"]["vader"] = str(settings_file)
    places = ["--output", str(output), "--work-dir", str(tmp_path / "work"), "--write", str(document)]
    overrides = ["--max_steps", "1", "--resamples", "100", "--probe", "false", "--save_strategy", "no"]
    COMPARE["main"](["--name", "vader", "--seeds", "0", *places, "--", *overrides])
    results = json.loads(output.read_text())
    assert results["settings"]["overrides"] == overrides
    assert results["plan"]["max_steps"] == 1
    assert str(tmp_path) not in json.dumps({key: some for key, some in results.items() if key != "settings"})
    shown = capsys.readouterr().out
    assert "| `valence` | pearson |" in shown
    before, _, pictures = document.read_text().partition("![")
    assert before == f"<!-- compare-vader:begin -->\n\n{shown.strip()}\n\n"
    assert pictures.endswith("](compare-vader-gains.png)\n\n<!-- compare-vader:end -->\n")
    assert (tmp_path / "compare-vader-gains.png").read_bytes().startswith(b"\x89PNG")
    COMPARE["main"](["--name", "vader", "--table", "--output", str(output)])
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit):
        COMPARE["main"](["--name", "intents"])  # Without data.

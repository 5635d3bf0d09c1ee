"""The benchmark of training speed: every way trains the same tokens, and the table's ratios are of medians."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from test_benchmarks import settings_file  # noqa: F401  # A fixture.

ROOT = Path(__file__).resolve().parents[1]
TRAINING = runpy.run_path(str(ROOT / "benchmarks" / "training.py"))
RUN = runpy.run_path(str(ROOT / "benchmarks" / "training_run.py"))


def test_every_way_trains_the_same_tokens(settings_file: Path, tmp_path: Path) -> None:  # noqa: F811
    with settings_file.open("a") as file:
        file.write("max_length: 16\nlogging_steps: 1\n")
    assert set(RUN["WAYS"]) == set(TRAINING["WAYS"])
    records = {way: RUN["measure"](way, str(settings_file), 3, str(tmp_path / way)) for way in RUN["WAYS"]}
    assert len({record["tokens"] for record in records.values()}) == 1
    for way, record in records.items():
        assert record["way"] == way
        assert len(record["loss"]) == 3 and record["loss"][0] != record["loss"][-1]
        assert record["tokens_per_second"] == pytest.approx(record["tokens"] / record["seconds"])
        assert record["precision"] in (("fp32",) if way != "mtl" else ("fp32", "bf16 autocast"))


def test_table_compares_medians() -> None:
    def record(way: str, speed: float) -> dict[str, Any]:
        machine = {"cpu": "a CPU", "threads": 2}
        versions = {"torch": "2", "transformers": "5", "sentence-transformers": "6"}
        figures = {"tokens_per_second": speed, "peak_memory_mib": 2 * speed, "tokens": 1000, "steps": 3}
        return {"way": way, "precision": "fp32", "machine": machine, "versions": versions, **figures}

    speeds = {
        "mtl": (10, 3000, 3300),
        "mtl-fp32": (2000,) * 3,
        "trainer": (1500, 1, 9999),
        "sentence-transformers": (1200,),
    }
    runs = [record(way, speed) for way, some in speeds.items() for speed in some]
    lines = TRAINING["table"]({"runs": runs}).splitlines()
    assert lines[2] == "| `MTLTrainer`, 3 tasks | fp32 | 3,000 | 1.00x | 6,000 |"
    assert lines[4] == "| `Trainer`, 3 tasks | fp32 | 1,500 | 2.00x | 3,000 |"
    assert lines[5] == "| `SentenceTransformerTrainer`, 1 task | fp32 | 1,200 | 2.50x | 2,400 |"
    assert "Medians of 3 trainings of 3 steps, 1,000 tokens each." in lines[-1]

"""The benchmark of static students: its table, worked out by hand."""

import runpy
from pathlib import Path

STATIC = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "static.py"))


def test_table_has_speeds_within_repeats_and_figures_by_task() -> None:
    report = {
        "sentences": 1000,
        # The machine slowed down for the last repeat, in which the ratio is 100 all the same.
        "seconds": {"teacher": [4.0, 4.0, 40.0], "64 dimensions": [0.02, 0.04, 0.4], STATIC["TOKENIZER"]: [0.01] * 3},
        "measured": {
            "64 dimensions": {"topic": {"accuracy": 0.91, "teacher": 0.95}, "stars": {"qwk": 0.5, "teacher": 0.7}}
        },
        "rows": {"64 dimensions": 2328},
        "mib": {"64 dimensions": 7.21},
        "machine": {"cpu": "a CPU", "threads": 2},
    }
    lines = STATIC["table"](report).splitlines()
    assert lines[0] == "|  | Sentences/s | Speed | Vectors, MiB | topic, accuracy | stars, qwk |"
    assert lines[2] == "| teacher | 250 | 1x |  | 0.9500 | 0.7000 |"
    assert lines[3] == "| 64 dimensions | 25,000 | 100x | 7.2 | 0.9100 | 0.5000 |"
    assert lines[4] == "| the students' tokenizer alone | 100,000 |  |  |  |  |"
    assert "1,000 sentences, medians of 3; figures on 2,328 rows" in lines[-1]


def test_all_run_in_turns_and_the_first_time_is_not_counted() -> None:
    calls: list[str] = []
    seconds = STATIC["in_turns"]({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert {name: len(some) for name, some in seconds.items()} == {"a": 2, "b": 2}

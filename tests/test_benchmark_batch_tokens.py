"""The benchmark of tokens a batch: a run of it, and its table worked out by hand."""

import runpy
from pathlib import Path

import pytest
from conftest import SaveBackbone

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel

BATCH_TOKENS = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "batch_tokens.py"))


def test_measures_each_budget_beside_the_default(
    backbone_dir: SaveBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MTLModel.from_backbone(str(backbone_dir()), tasks=[TaskConfig("topic", num_labels=2)]).save_pretrained(tmp_path)
    options = ["--tokens", "16", "64", "--sentences", "8", "--repeats", "2", "--output", str(tmp_path / "report.json")]
    report = BATCH_TOKENS["main"]([str(tmp_path), *options])
    assert report["seconds"].keys() == {"torch, fp32", "torch, bf16"}
    for seconds in report["seconds"].values():
        assert {name: len(some) for name, some in seconds.items()} == {"default": 2, "16": 2, "64": 2}
    assert "| torch, bf16 |" in capsys.readouterr().out


def test_table_has_medians_of_ratios_within_repeats() -> None:
    report = {
        "sentences": 1000,
        "tokens": [512, 2048],
        # The machine slowed down for the last repeat, in which the ratios are those of the first all the same.
        "seconds": {"torch, fp32": {"default": [4.0, 5.0, 40.0], "512": [8.0, 8.0, 80.0], "2048": [3.2, 4.0, 32.0]}},
        "machine": {"cpu": "a CPU", "threads": 2},
    }
    lines = BATCH_TOKENS["table"](report).splitlines()
    assert lines[0] == "|  | Sentences/s with the default | 512 | 2,048 |"
    assert lines[2] == "| torch, fp32 | 200 | 0.50x | 1.25x |"
    assert lines[-1] == "1,000 sentences, medians of 3. a CPU, 2 threads."

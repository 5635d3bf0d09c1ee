"""The benchmark of embeddings: the pairs that it draws, and its tables."""

import runpy
from pathlib import Path
from typing import Any

from datasets import Dataset

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "embedding_quality.py"))
DOMAIN_OF = {0: 0, 1: 0, 2: 1, 3: 1, -1: -1}


def test_pairs_have_the_grade_of_their_labels() -> None:
    intents = [-1, -1, *[0, 1, 2, 3] * 5]
    columns = {"label_clinc": intents, "label_clinc_domain": [DOMAIN_OF[intent] for intent in intents]}
    rows = Dataset.from_dict({"text": [f"{intent} {row}" for row, intent in enumerate(intents)], **columns})
    pairs = BENCHMARK["graded_pairs"](rows, 30, seed=0)
    assert len(pairs.first) == len(pairs.second) == 90
    assert pairs.scores.tolist() == [2.0] * 30 + [1.0] * 30 + [0.0] * 30
    for first, second, score in zip(pairs.first, pairs.second, pairs.scores, strict=True):
        one, other = (int(text.split()[0]) for text in (first, second))
        assert first != second
        assert min(one, other) >= 0  # None is out of scope.
        assert score == (one == other) + (DOMAIN_OF[one] == DOMAIN_OF[other])
    assert pairs.first == BENCHMARK["graded_pairs"](rows, 30, seed=0).first


def _run(weight: float, shift: float) -> dict[str, Any]:
    def figures(value: float, *tasks: str) -> dict[str, Any]:
        purity = {task: {"value": value} for task in tasks}
        return {"purity": purity, "uniformity": -value, "similarity": {"spearman": value, "pairs": 3, "name": "x"}}

    result = {"rows": 1000, "score": 0.5, "tasks": {"topic": 0.9 - shift}}
    return {
        "weight": weight,
        "primary_metrics": {"topic": "accuracy"},
        "results": {"validation": result, "test": result},
        "precision": "fp32",
        "machine": {"cpu": "a processor"},
        "versions": {"torch": "2", "transformers": "5"},
        "embedding": {
            "vader": {"before": figures(0.6, "topic"), "after": figures(0.7 + shift, "topic")},
            "clinc150": {
                "before": figures(0.8, "clinc", "clinc_domain"),
                "after": figures(0.4 + shift, "clinc", "clinc_domain"),
            },
        },
    }


def test_tables_by_hand() -> None:
    settings = {"seed": 0, "max_steps": None, "limit": None}
    lines = BENCHMARK["tables"]({"settings": settings, "runs": [_run(1.0, 0.1), _run(0.0, 0.0)]}).splitlines()
    assert "| before training | - | 0.600 | -0.600 |" in lines
    assert "| `preserve_embeddings: 0` | 0.900 | 0.700 | -0.700 |" in lines
    assert "| `preserve_embeddings: 1` | 0.800 | 0.800 | -0.800 |" in lines
    assert "| before training | 0.800 | 0.800 | 0.800 | -0.800 |" in lines
    assert "| `preserve_embeddings: 1` | 0.500 | 0.500 | 0.500 | -0.500 |" in lines
    assert lines[-1] == (
        "One training each, seed 0. Tasks are measured on 1,000 test rows. a processor, fp32, torch 2, transformers 5."
    )

"""A report as a run with everything leaves it, for the tests of figures and pages: made up, but of one piece."""

from typing import Any

import numpy as np

from problem_types_mtl import MULTI_LABEL, REGRESSION, SINGLE_LABEL

INTENTS = 150
SOURCES = ("clinc150", "reviews")
TAGS = ("urgent", "question", "thanks")
NASTY = "</script><script>alert('1')</script> \"<b>&amp;</b>\" $x$ \ud800\x00 {{ 7 * 7 }}"
"""A label, or a text, that breaks what does not escape it."""

Json = dict[str, Any]


def make_report(*, errors: int = 40, label: str = "intent 0", text: str = "a sentence") -> Json:
    """Returns a report of three tasks, with evidence on validation and test, embedding and calibration.

    Args:
        errors: Errors of each task.
        label: Name of the first of 150 intents.
        text: Beginning of every text.
    """
    rng = np.random.default_rng(0)
    intents = [label, *(f"intent {number}" for number in range(1, INTENTS))]
    tasks: list[Json] = [
        {"name": "intent", "problem_type": SINGLE_LABEL, "labels": intents, "weight": 1.0},
        {"name": "tags", "problem_type": MULTI_LABEL, "labels": list(TAGS), "weight": 1.0},
        {"name": "valence", "problem_type": REGRESSION, "labels": None, "weight": 0.5},
    ]
    evidence = {split: _evidence(split, intents, errors, text, rng) for split in ("validation", "test")}
    return {
        "settings": {"output_dir": "outputs/all", "learning_rate": 1e-4, "freeze": None, "max_steps": 300},
        "tasks": tasks,
        "data": {"rows": {"train": 4000, "validation": 400, "test": 400}, "truncated": {"train": 3}},
        "parameters": {"total": 22_568_456, "trained": 22_568_456, "frozen_modules": []},
        "precision": "fp32",
        "training": {"train_runtime": 754.2, "train_samples_per_second": 12.7, "steps": 300, "epoch": 2.4},
        "conflicts": _conflicts([task["name"] for task in tasks]),
        "peak_memory_mib": 1834.5,
        "history": _history(rng),
        "results": {split: _result(part) for split, part in evidence.items()},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"platform": "Linux", "cpu_count": 2, "device": "cpu"},
        "calibration": {"intent": _temperature(evidence)},
        "evidence": evidence,
        "embedding": _embedding(intents, text, rng),
    }


def make_comparison() -> Json:
    """Returns a comparison of one model of three tasks with three models."""
    tasks = {
        "intent": _compared("accuracy", 0.955, 0.949, 0.006, (0.001, 0.011), "helps"),
        "tags": _compared("f1_micro", 0.871, 0.874, -0.003, (-0.009, 0.004), "no evidence"),
        "valence": _compared("pearson", 0.841, 0.852, -0.011, (-0.017, -0.005), "harms"),
    }
    costs = {"training_seconds": 750.0, "parameters": 22_568_456, "disk_mib": 86.1, "latency_ms": 41.0}
    several = {"training_seconds": 1930.0, "parameters": 67_590_000, "disk_mib": 258.0, "latency_ms": 122.0}
    return {
        "tasks": tasks,
        "mean_relative_gain_percent": {"value": -0.34, "low": -0.9, "high": 0.2},
        "verdict": {"decision": "split off", "split_off": ["valence"], "text": "Split off valence: it loses 1.29 %."},
        "cost": {
            "multi_task": costs,
            "single_task": several,
            "ratio": {key: several[key] / costs[key] for key in costs},
        },
        "transfer": {"tasks": list(tasks), "matrix": [[None, 0.4, -0.2], [0.1, None, -0.6], [-1.2, -0.3, None]]},
        "plan": {"seeds": [0, 1, 2]},
    }


def _compared(metric: str, shared: float, alone: float, value: float, ends: tuple[float, float], verdict: str) -> Json:
    def spread(mean: float) -> Json:
        return {"mean": mean, "std": 0.002, "by_seed": [mean - 0.002, mean, mean + 0.002]}

    return {
        "metric": metric,
        "lower_is_better": False,
        "multi_task": spread(shared),
        "single_task": spread(alone),
        "probe": spread(alone - 0.2),
        "difference": {"value": value, "low": ends[0], "high": ends[1]},
        "difference_to_probe": {"value": 0.2, "low": 0.18, "high": 0.22},
        "relative_gain_percent": 100 * value / alone,
        "verdict": verdict,
        "reason": f"{100 * value / alone:+.2f} %: see the interval.",
    }


def _history(rng: np.random.Generator) -> list[Json]:
    history: list[Json] = []
    for step in range(10, 301, 10):
        fall = float(np.exp(-step / 80))
        noise = [float(value) for value in rng.normal(0, 0.02, 3)]
        losses = {
            "loss_intent": 4.2 * fall + 0.4 + noise[0],
            "loss_tags": 0.5 * fall + 0.2 + noise[1],
            "loss_valence": 1.5 * fall + 0.7 + noise[2],
        }
        rate = 1e-4 * (1 - step / 300)
        history.append({"loss": sum(losses.values()), **losses, "learning_rate": rate, "grad_norm": 5.0, "step": step})
        if step % 50 == 0:
            reached = {"eval_intent_accuracy": 0.97 - fall, "eval_intent_loss": 4 * fall + 0.5}
            reached |= {"eval_tags_f1_micro": 0.9 - fall / 2, "eval_tags_loss": 0.5 * fall + 0.22}
            reached |= {"eval_valence_pearson": 0.85 - fall / 2, "eval_valence_loss": 1.5 * fall + 0.75}
            history.append({**reached, "eval_loss": 5 * fall + 1.4, "eval_score": 0.9 - fall, "step": step})
    return [*history, {"train_runtime": 754.2, "step": 300}]


def _conflicts(names: list[str]) -> Json:
    pairs = [(names[0], names[1], 0.12), (names[0], names[2], -0.21), (names[1], names[2], 0.04)]
    return {
        "mean_norms": {name: 1.0 + place for place, name in enumerate(names)},
        "pairs": [
            {"tasks": [first, second], "mean_cosine": cosine, "negative_share": 0.3, "count": 30}
            for first, second, cosine in pairs
        ],
        "advice": "Strong conflict between 'intent' and 'valence' (mean cosine -0.21).",
    }


def _result(evidence: Json) -> Json:
    return {
        "split": evidence["split"],
        "num_rows": evidence["num_rows"],
        "score": evidence["score"],
        "primary_metrics": {name: task["primary_metric"] for name, task in evidence["tasks"].items()},
        "tasks": {
            name: {"support": task["support"], **{key: some["value"] for key, some in task["metrics"].items()}}
            for name, task in evidence["tasks"].items()
        },
        "seconds": evidence["seconds"],
    }


def _evidence(split: str, intents: list[str], errors: int, text: str, rng: np.random.Generator) -> Json:
    tasks = {
        "intent": _classes(intents, errors, text, rng),
        "tags": _tags(errors, text, rng),
        "valence": _numbers(errors, text, rng),
    }
    slices = [
        {
            "by": by,
            "value": value,
            "rows": rows,
            "tasks": {name: _of_slice(task, rows) for name, task in tasks.items()},
        }
        for by, value, rows in [
            *(("source", source, 200) for source in SOURCES),
            *(("length", f"{8 * step} to {8 * step + 8} tokens", 100) for step in range(4)),
        ]
    ]
    return {
        "split": split,
        "num_rows": 400,
        "score": 0.886,
        "seconds": 9.1,
        "rows_per_second": 44.0,
        "bootstrap": {"resamples": 1000, "confidence_level": 0.95, "seed": 0},
        "coverage": {
            "rows": 400,
            "labelled": {"intent": 200, "tags": 150, "valence": 200},
            "patterns": [
                {"tasks": ["intent"], "rows": 200},
                {"tasks": ["tags", "valence"], "rows": 150},
                {"tasks": ["valence"], "rows": 50},
            ],
            "by_source": {
                SOURCES[0]: {"rows": 200, "labelled": {"intent": 200, "tags": 0, "valence": 0}},
                SOURCES[1]: {"rows": 200, "labelled": {"intent": 0, "tags": 150, "valence": 200}},
            },
        },
        "tasks": tasks,
        "slices": slices,
    }


def _of_slice(task: Json, rows: int) -> Json:
    value = task["metrics"][task["primary_metric"]]["value"] - 2 / rows
    return {
        "metric": task["primary_metric"],
        "value": value,
        "low": value - 0.05,
        "high": value + 0.03,
        "support": rows,
    }


def _metrics(**values: float) -> Json:
    bounds = {key: (None, None) if key == "loss" else (value - 0.02, value + 0.02) for key, value in values.items()}
    return {key: {"value": value, "low": bounds[key][0], "high": bounds[key][1]} for key, value in values.items()}


def _classes(intents: list[str], errors: int, text: str, rng: np.random.Generator) -> Json:
    matrix = np.diag(rng.integers(20, 30, len(intents)))
    confusable = rng.integers(0, len(intents), (60, 2))
    for row, column in confusable:
        matrix[row, column] += int(rng.integers(1, 6)) if row != column else 0
    matrix[7, 3] += 12  # The most frequent confusion.
    labels = []
    for place, name in enumerate(intents):
        true, said, right = int(matrix[place].sum()), int(matrix[:, place].sum()), int(matrix[place, place])
        precision, recall = right / said, right / true
        f1 = 2 * precision * recall / (precision + recall)
        labels.append({"label": name, "precision": precision, "recall": recall, "f1": f1, "support": true})
        labels[-1] |= {"predicted": said, "threshold": None}
    return {
        "problem_type": SINGLE_LABEL,
        "primary_metric": "accuracy",
        "support": int(matrix.sum()),
        "metrics": _metrics(accuracy=0.948, f1_macro=0.944, mcc=0.946, loss=0.25),
        "labels": labels,
        "confusion": {"labels": intents, "matrix": matrix.tolist()},
        "calibration": {**_calibration(0.01), "temperature": 1.37, "before": _calibration(0.09)},
        "errors": [
            _error(number, text, intents[number % 3], intents[(number + 5) % len(intents)], rng)
            for number in range(errors)
        ],
    }


def _tags(errors: int, text: str, rng: np.random.Generator) -> Json:
    return {
        "problem_type": MULTI_LABEL,
        "primary_metric": "f1_micro",
        "support": 150,
        "metrics": _metrics(f1_micro=0.871, f1_macro=0.86, map=0.91, loss=0.2),
        "labels": [
            {
                "label": tag,
                "precision": 0.9,
                "recall": 0.85,
                "f1": 0.87,
                "support": 50,
                "predicted": 47,
                "threshold": 0.4,
            }
            for tag in TAGS
        ],
        "calibration": {**_calibration(0.03), "temperature": None, "before": None},
        "errors": [_error(number, text, "urgent", "question, thanks", rng) for number in range(errors)],
    }


def _numbers(errors: int, text: str, rng: np.random.Generator) -> Json:
    true = rng.normal(0, 1.6, 300)
    said = 0.85 * true + rng.normal(0, 0.7, 300)
    off = said - true
    counts, edges = np.histogram(off, bins=30)
    return {
        "problem_type": REGRESSION,
        "primary_metric": "pearson",
        "support": 200,
        "metrics": _metrics(pearson=0.841, spearman=0.839, rmse=0.87, loss=0.76),
        "residuals": [
            {
                "output": "LABEL_0",
                "mean": float(off.mean()),
                "std": float(off.std()),
                "quantiles": {str(at): float(np.quantile(off, at)) for at in (0.05, 0.25, 0.5, 0.75, 0.95)},
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
                "points": np.stack([true, said], axis=1).tolist(),
            }
        ],
        "errors": [_error(number, text, "-2.4", "2.6", rng) for number in range(errors)],
    }


def _error(number: int, text: str, label: str, predicted: str, rng: np.random.Generator) -> Json:
    words = f"{text} number {number}"
    source = SOURCES[number % 2]
    score = round(float(rng.uniform(0.5, 1.0)), 6)
    return {"row": number, "text": words, "source": source, "label": label, "predicted": predicted, "score": score}


def _calibration(off: float) -> Json:
    bins: list[Json] = []
    for place in range(15):
        low, high = place / 15, (place + 1) / 15
        middle = (low + high) / 2
        bins.append({"low": low, "high": high, "count": 4 * place**2, "confidence": middle, "accuracy": middle - off})
    bins[0] |= {"confidence": None, "accuracy": None}
    return {"ece": off, "brier": 0.08 + off, "nll": 0.2 + off, "bins": bins}


def _temperature(evidence: Json) -> Json:
    calibrations = {split: part["tasks"]["intent"]["calibration"] for split, part in evidence.items()}
    return {
        "temperature": 1.37,
        "label_thresholds": None,
        "abstention_threshold": None,
        "before": {split: some["before"] for split, some in calibrations.items()},
        "after": dict(calibrations),
    }


def _embedding(intents: list[str], text: str, rng: np.random.Generator) -> Json:
    places = rng.integers(0, len(intents), 900)
    angles = places * 2.399963
    centres = np.sqrt(places)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = (centres + rng.normal(0, 0.35, (900, 2))).round(4)
    polarity = np.where(points[:, 0] > 2, 1, np.where(points[:, 0] < -2, 0, -1))

    def figures(spearman: float, share: float) -> Json:
        return {
            "similarity": {"spearman": spearman, "pairs": 1379, "name": "pairs.csv"},
            "purity": {"intent": {"value": share, "chance": 0.007, "neighbours": 10, "rows": 900}},
            "alignment": {"intent": 0.42},
            "uniformity": -2.4,
            "rows": 900,
        }

    return {
        "before": figures(0.82, 0.71),
        "after": figures(0.74, 0.93),
        "advice": "Spearman on pairs.csv fell from 0.82 to 0.74 (1,379 pairs): search will suffer.",
        "map": {
            "method": "pca",
            "explained": [0.21, 0.13],
            "points": points.tolist(),
            "rows": list(range(900)),
            "texts": [f"{text} {number}" for number in range(900)],
            "tasks": {
                "intent": {"labels": intents, "of_point": places.tolist()},
                "polarity": {"labels": ["left", "right"], "of_point": polarity.tolist()},
            },
        },
    }

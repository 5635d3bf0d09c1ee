"""The evidence of a split as text for a terminal: figures with intervals, the weakest labels, slices, calibration."""

from collections.abc import Mapping
from typing import Any

_MOST_LABELS = 5
_MOST_NAMES = 24


def evidence_tables(evidence: Mapping[str, Any]) -> str:
    """Formats what `build_evidence` returns as lines of text."""
    level = evidence["bootstrap"]["confidence_level"]
    head = f"{evidence['split']}: {evidence['num_rows']:,} rows, score {_number(evidence['score'])}"
    lines = [f"\n{head}; intervals of {level:.0%} over the rows"]
    for name, task in evidence["tasks"].items():
        lines += [f"\n{name} ({task['problem_type']}, {task['support']:,} labelled rows)"]
        for metric, figure in task["metrics"].items():
            lines.append(f"  {metric:<16} {_interval(figure)}")
        lines += _labels(task.get("labels", ())) + _calibration(task.get("calibration"))
    return "\n".join([*lines, *_slices(evidence["slices"])])


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return _number(figure["value"])
    return f"{_number(figure['value'])}  [{figure['low']:.4f}, {figure['high']:.4f}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _labels(labels: Any) -> list[str]:
    known = sorted(
        (some for some in labels if some["f1"] is not None and some["support"]), key=lambda some: some["f1"]
    )
    if not known:
        return []
    shown = [f"{_short(some['label'])} {some['f1']:.2f} ({some['support']:,})" for some in known[:_MOST_LABELS]]
    return [f"  weakest labels by F1 (rows): {', '.join(shown)}"]


def _calibration(calibration: Mapping[str, Any] | None) -> list[str]:
    if calibration is None or calibration["ece"] is None:
        return []
    line = f"  calibration error {calibration['ece']:.4f}, Brier score {calibration['brier']:.4f}"
    if calibration["before"] is not None and calibration["before"]["ece"] is not None:
        line += f" at temperature {calibration['temperature']:.3f} (without: {calibration['before']['ece']:.4f})"
    return [line]


def _slices(slices: Any) -> list[str]:
    lines = []
    for some in slices:
        figures = [f"{name} {figure['metric']} {_interval(figure)}" for name, figure in some["tasks"].items()]
        if figures:
            lines.append(f"  {some['by']} = {_short(some['value'])} ({some['rows']:,} rows): {'; '.join(figures)}")
    return ["\nslices", *lines] if lines else []


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _MOST_NAMES else line[: _MOST_NAMES - 1] + "…"

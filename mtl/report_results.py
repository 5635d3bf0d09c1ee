"""Sections of a page on what a model reaches: results, each task, slices, errors, and which rows have labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mtl.figures import figure_name
from mtl.figures_intervals import MOST_SLICES
from mtl.figures_matrices import confused_pairs, most_confused
from mtl.metrics import LOWER_IS_BETTER
from mtl.report_blocks import Block, Cell, Heading, Picture, Pictures, Section, Table, Text, count, interval, number

Pick = Callable[..., list[Picture]]
"""Gives the pictures of some kinds, of a task if one is named."""

MOST_ERRORS = 1000
"""Count of errors in a page, of all tasks together."""
_LONGEST_TEXT = 400
_MOST_PAIRS = 12
_MOST_PATTERNS = 20


def results_section(report: Mapping[str, Any], evidence: Mapping[str, Any] | None, pick: Pick) -> Section | None:
    """Returns the metrics of every task: those of a split with their intervals, and those of the run's splits."""
    blocks: list[Block] = []
    if evidence is not None:
        settings = evidence["bootstrap"]
        data = f" of {evidence['data']}" if evidence.get("data") else ""
        blocks.append(
            Text(
                f"On {evidence['num_rows']:,} rows of {evidence['split']}{data}. An interval holds with "
                f"{settings['confidence_level']:.0%}; it is of {settings['resamples']:,} bootstrap resamples of the "
                "rows, and does not say how another training would differ."
            )
        )
        blocks += [Pictures(pictures)] if (pictures := pick("results")) else []
        blocks.append(_metrics_table(evidence))
    others = {name: result for name, result in report.get("results", {}).items()}
    if others and (evidence is None or len(others) > 1):
        blocks.append(_splits_table(others))
    return Section("results", "Results", blocks) if blocks else None


def _metrics_table(evidence: Mapping[str, Any]) -> Table:
    rows = []
    for name, task in evidence["tasks"].items():
        for key, metric in task["metrics"].items():
            is_main = key == task["primary_metric"]
            shown = f"{key} ↓" if key in LOWER_IS_BETTER else key
            value = Cell(number(metric["value"]).text, metric["value"], is_main=is_main)
            ends = interval(metric["low"], metric["high"])
            rows.append([Cell(name), Cell(shown, is_main=is_main), value, ends, count(task["support"])])
    heads = ("task", "metric", "value", "interval", "labelled rows")
    caption = f"Metrics on {evidence['split']}; the primary one of each task is in bold, ↓ marks where less is better"
    return Table(caption, heads, rows, frozenset({2, 3, 4}), is_sortable=True, is_folded=True)


def _splits_table(results: Mapping[str, Any]) -> Table:
    rows = [
        [Cell(task), Cell(key), *(number(result["tasks"].get(task, {}).get(key)) for result in results.values())]
        for task, key in next(iter(results.values()))["primary_metrics"].items()
    ]
    rows.append([Cell("score", is_main=True), Cell("mean"), *(number(result["score"]) for result in results.values())])
    heads = ("task", "primary metric", *(f"{name} ({result['num_rows']:,} rows)" for name, result in results.items()))
    return Table("Primary metrics by split, as measured at the end of the run", heads, rows, _from(2, len(heads)))


def tasks_section(evidence: Mapping[str, Any], pick: Pick) -> Section:
    """Returns, of each task, where it goes wrong and how far it can be believed."""
    blocks: list[Block] = []
    for place, (name, task) in enumerate(evidence["tasks"].items()):
        kind = task["problem_type"].replace("_", " ")
        blocks.append(Heading(f"task-{place}", name, f"{kind}, {task['support']:,} labelled rows"))
        blocks += _of_task(name, task, pick)
    return Section("tasks", "Task by task", blocks)


def _of_task(name: str, task: Mapping[str, Any], pick: Pick) -> Iterator[Block]:
    if pictures := pick("confusion", "reliability", "predicted", "residuals", task=name):
        yield Pictures(pictures)
    if text := _about_calibration(task.get("calibration")):
        yield Text(text)
    if confusion := task.get("confusion"):
        yield from _about_confusion(name, confusion)
    if labels := task.get("labels"):
        yield _label_table(name, labels)
    for residuals in task.get("residuals", []):
        yield _residual_table(residuals, several=len(task["residuals"]) > 1)


def _about_calibration(calibration: Mapping[str, Any] | None) -> str:
    if not calibration or calibration["ece"] is None:
        return ""
    keys = (("ece", "expected calibration error"), ("nll", "negative log-likelihood"), ("brier", "Brier score"))
    before = calibration.get("before")
    if before is None:
        figures = ", ".join(f"{words} {calibration[key]:.4f}" for key, words in keys)
        return f"Calibration: {figures}; no temperature was fitted."
    figures = ", ".join(f"{words} from {before[key]:.4f} to {calibration[key]:.4f}" for key, words in keys)
    return f"Calibration: the temperature of {calibration['temperature']:.4f} changes {figures}."


def _about_confusion(name: str, confusion: Mapping[str, Any]) -> Iterator[Block]:
    labels, matrix = confusion["labels"], confusion["matrix"]
    pairs = confused_pairs(matrix)
    if not pairs:
        yield Text("No row is taken for one of another class.")
        return
    if (shown := len(most_confused(matrix))) < len(matrix):
        yield Text(
            f"The matrix has the {shown} of {len(matrix)} classes that the most frequent confusions are between; its "
            f"last column has what is taken for any other. All are in figures/{figure_name('confusion', name)}.json."
        )
    rows = [
        [
            Cell(_cut(labels[true])),
            Cell(_cut(labels[said])),
            count(matrix[true][said]),
            _share(matrix[true][said], sum(matrix[true])),
        ]
        for true, said in pairs[:_MOST_PAIRS]
    ]
    which = f": the {_MOST_PAIRS} most frequent of {len(pairs)} kinds" if len(pairs) > _MOST_PAIRS else ""
    heads = ("true class", "taken for", "rows", "of the true class")
    yield Table(f"Confusions{which}", heads, rows, frozenset({2, 3}), is_sortable=True)


def _share(part: float, whole: float) -> Cell:
    share = part / whole if whole else None
    return Cell(number(share, ".1%").text, share, share=share)


def _label_table(name: str, labels: Sequence[Mapping[str, Any]]) -> Table:
    has_thresholds = any(some["threshold"] is not None for some in labels)
    heads = ["label", "F1", "precision", "recall", "rows", "predicted", *(["threshold"] if has_thresholds else [])]
    rows = []
    for some in sorted(labels, key=lambda some: -1.0 if some["f1"] is None else some["f1"]):
        f1 = Cell(number(some["f1"], ".3f").text, some["f1"], share=some["f1"])
        cells = [Cell(_cut(some["label"])), f1, number(some["precision"], ".3f"), number(some["recall"], ".3f")]
        cells += [count(some["support"]), count(some["predicted"])]
        rows.append([*cells, *([number(some["threshold"], ".3f")] if has_thresholds else [])])
    caption = f"The {len(labels)} labels of {name}, the lowest F1 first"
    return Table(caption, heads, rows, _from(1, len(heads)), is_sortable=True, is_folded=len(labels) > 12)


def _residual_table(residuals: Mapping[str, Any], *, several: bool) -> Table:
    quantiles = residuals["quantiles"]
    heads = ["mean", "standard deviation", *(f"{float(at):.0%} quantile" for at in quantiles)]
    cells = [number(residuals[key], "+.3f") for key in ("mean",)] + [number(residuals["std"], ".3f")]
    cells += [number(value, "+.3f") for value in quantiles.values()]
    which = f" of {residuals['output']}" if several else ""
    return Table(f"Residuals{which}, predicted less true", heads, [cells], _from(0, len(heads)))


def slices_section(evidence: Mapping[str, Any], pick: Pick) -> Section | None:
    """Returns each task's primary metric on groups of rows."""
    parts = evidence.get("slices", [])
    if not parts:
        return None
    blocks: list[Block] = [
        Text(
            "Each task's primary metric on groups of rows, with intervals; a dashed line is the whole split. Numbers "
            f"in brackets count labelled rows; of each kind of group, at most the {MOST_SLICES} largest are drawn."
        )
    ]
    blocks += [Pictures([picture]) for name in evidence["tasks"] for picture in pick("slices", task=name)]
    rows = [
        [
            *(Cell(_cut(str(text))) for text in (part["by"], part["value"], task, some["metric"])),
            number(some["value"]),
            interval(some["low"], some["high"]),
            count(some["support"]),
        ]
        for part in parts
        for task, some in part["tasks"].items()
    ]
    heads = ("by", "group", "task", "metric", "value", "interval", "labelled rows")
    blocks.append(Table("All groups", heads, rows, frozenset({4, 5, 6}), is_sortable=True, is_folded=True))
    return Section("slices", "Groups of rows", blocks)


def errors_section(evidence: Mapping[str, Any]) -> Section | None:
    """Returns the surest errors of all tasks, 1,000 at most, each task with its share of these."""
    found = {name: task["errors"] for name, task in evidence["tasks"].items() if task.get("errors")}
    if not found:
        return None
    total, most = sum(map(len, found.values())), MOST_ERRORS // len(found)
    shown = [(name, error) for name, errors in found.items() for error in errors[:most]]
    text = "Of each task the surest errors first: by the score of the prediction, or for numbers by how far it is off."
    if len(shown) < total:
        text += (
            f" Here are {len(shown):,} of {total:,}, at most {most:,} a task; the JSON of the evidence has them all."
        )
    rows = [
        [
            Cell(name),
            Cell(_cut(error["text"]), is_prose=True),
            Cell(_cut(error["label"])),
            Cell(_cut(error["predicted"])),
            number(error["score"], ".3f"),
            Cell(_cut(error["source"])),
            count(error["row"]),
        ]
        for name, error in shown
    ]
    heads = ("task", "text", "true", "predicted", "score", "source", "row")
    table = Table(f"Errors on {evidence['split']}", heads, rows, frozenset({4, 6}), is_sortable=True, filters=0)
    return Section("errors", "Errors", [Text(text), table])


def _cut(text: str) -> str:
    """Returns a text of the data, of whatever length, as long as a cell has room for."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def coverage_section(evidence: Mapping[str, Any]) -> Section | None:
    """Returns which rows are labelled for which tasks."""
    coverage = evidence.get("coverage")
    if not coverage or not coverage["rows"]:
        return None
    tasks = list(coverage["labelled"])
    rows = [
        [Cell(source), count(some["rows"]), *(_part(some["labelled"][task], some["rows"]) for task in tasks)]
        for source, some in coverage["by_source"].items()
    ]
    whole = [_part(coverage["labelled"][task], coverage["rows"]) for task in tasks]
    rows.append([Cell("all", is_main=True), count(coverage["rows"]), *whole])
    heads = ("source", "rows", *tasks)
    patterns = [
        [Cell(", ".join(pattern["tasks"]) or "no task"), _part(pattern["rows"], coverage["rows"])]
        for pattern in coverage["patterns"][:_MOST_PATTERNS]
    ]
    found = coverage.get("num_patterns", len(coverage["patterns"]))
    which = f": the {_MOST_PATTERNS} most frequent of {found:,} sets" if found > _MOST_PATTERNS else ""
    by_source = Table("Labelled rows by source", heads, rows, _from(1, len(heads)))
    together = Table(f"Tasks that are labelled together{which}", ("tasks", "rows"), patterns, frozenset({1}))
    return Section("coverage", "Coverage of labels", [by_source, together])


def _part(part: int, whole: int) -> Cell:
    share = part / whole if whole else None
    return Cell(f"{part:,}" if share is None else f"{part:,} ({share:.0%})", part, share=share)


def _from(first: int, end: int) -> frozenset[int]:
    return frozenset(range(first, end))

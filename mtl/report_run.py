"""Sections of a page on a run: curves, conflicts, calibration, embedding, comparison with single tasks, settings."""

import json
from collections.abc import Mapping
from typing import Any

from mtl.figure_style import MARKERS, PALETTE
from mtl.figures_map import MOST_NAMES
from mtl.report_blocks import (
    Block,
    Cell,
    Heading,
    Pictures,
    PlaneMap,
    Section,
    Table,
    Text,
    count,
    duration,
    interval,
    number,
)
from mtl.report_results import Pick

_SCORES = ("ECE", "NLL", "Brier score")


def training_section(report: Mapping[str, Any], pick: Pick) -> Section | None:
    """Returns the curves of all tasks together and of each one."""
    blocks: list[Block] = [Text(text)] if (text := _about_training(report)) else []
    blocks += [Pictures(pictures)] if (pictures := pick("loss", "score", "learning_rate")) else []
    for place, task in enumerate(report.get("tasks", [])):
        if pictures := pick("loss", "metrics", task=task["name"]):
            blocks += [Heading(f"training-{place}", task["name"]), Pictures(pictures)]
    return Section("training", "Training", blocks) if blocks else None


def _about_training(report: Mapping[str, Any]) -> str:
    training, parameters = report.get("training") or {}, report.get("parameters") or {}
    told = []
    if training.get("train_runtime"):
        told.append(f"{steps_of(training)} in {duration(training['train_runtime'])}")
    if training.get("train_samples_per_second"):
        told.append(f"{training['train_samples_per_second']:,.1f} rows a second")
    if report.get("precision"):
        told.append(f"in {report['precision']}")
    if parameters:
        told.append(f"{parameters['trained']:,} of {parameters['total']:,} parameters learning")
    return f"{', '.join(told)}." if told else ""


def steps_of(training: Mapping[str, Any]) -> str:
    """Returns which steps the time of a training is of: of one that was resumed the last ones."""
    steps, begun = training.get("steps", 0), training.get("resumed_at_step", 0)
    return f"steps {begun + 1:,} to {steps:,}, after a resume," if begun else f"{steps:,} steps"


def conflicts_section(report: Mapping[str, Any], pick: Pick) -> Section | None:
    """Returns whether the tasks pulled the encoder in different directions."""
    conflicts = report.get("conflicts")
    if not conflicts:
        return None
    blocks: list[Block] = [Text(conflicts["advice"], is_main=True)]
    if pictures := pick("conflicts"):
        caption = "Cosines of the tasks' gradients on the shared encoder, means over the training; below zero, a step "
        blocks += [Text(f"{caption}for one task alone makes the other one worse."), Pictures(pictures)]
    norms = [[Cell(name), number(norm, ".4g")] for name, norm in conflicts["mean_norms"].items()]
    blocks.append(Table("Mean norms of the gradients", ("task", "norm"), norms, frozenset({1})))
    return Section("conflicts", "Conflicts of the tasks", blocks)


def calibration_section(report: Mapping[str, Any]) -> Section | None:
    """Returns what temperatures change on each split."""
    rows = [
        [Cell(name), Cell(split), number(entry["temperature"]), *_changes(entry["before"][split], after)]
        for name, entry in (report.get("calibration") or {}).items()
        for split, after in entry["after"].items()
        if entry["temperature"] is not None
    ]
    if not rows:
        return None
    heads = ("task", "split", "temperature", *(f"{name} {when}" for name in _SCORES for when in ("before", "after")))
    text = (
        "Logits are divided by a temperature, which was fitted on validation. ECE is the expected calibration error, "
        "NLL the negative log-likelihood in nats; before is without the temperature, after with it."
    )
    table = Table("Calibration by task and split", heads, rows, frozenset(range(2, 9)))
    return Section("calibration", "Calibration", [Text(text), table])


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Cell]:
    return [number(some[key]) for key in ("ece", "nll", "brier") for some in (before, after)]


def embedding_section(report: Mapping[str, Any], images: Mapping[str, tuple[str, str]]) -> Section | None:
    """Returns what training made of the embedding, and its map.

    Args:
        report: The report.
        images: By task the map's alternative text, and its link.
    """
    embedding = report.get("embedding")
    if not embedding:
        return None
    blocks: list[Block] = [Text(embedding["advice"], is_main=True)] if embedding.get("advice") else []
    blocks.append(_embedding_table(embedding))
    plane = embedding.get("map")
    if plane and plane["points"] and images:
        explained = plane.get("explained")
        share = f", which hold {sum(explained):.0%} of the variance" if explained else ""
        blocks.append(Text(f"{len(plane['points']):,} sentences on the first two principal components{share}."))
        data = {key: plane[key] for key in ("points", "texts", "tasks")}
        blocks.append(PlaneMap(data, images, MOST_NAMES, (len(PALETTE), len(MARKERS))))
    return Section("embedding", "Embedding", blocks)


def _embedding_table(embedding: Mapping[str, Any]) -> Table:
    before, after = embedding.get("before") or {}, embedding["after"]
    rows = []
    if after.get("similarity"):
        old, new = before.get("similarity") or {}, after["similarity"]
        name = f"Spearman correlation on {new['name']} ({new['pairs']:,} pairs)"
        rows.append([Cell(name), number(old.get("spearman"), ".3f"), number(new["spearman"], ".3f")])
    for task, new in after.get("purity", {}).items():
        chance = number(new["chance"], ".3f").text
        name = f"{new['neighbours']} nearest neighbours with the same {task} (by chance {chance})"
        old = before.get("purity", {}).get(task, {})
        rows.append([Cell(name), number(old.get("value"), ".3f"), number(new["value"], ".3f")])
    for task, value in after.get("alignment", {}).items():
        old_value = before.get("alignment", {}).get(task)
        rows.append([Cell(f"alignment of {task} ↓"), number(old_value, ".3f"), number(value, ".3f")])
    rows.append([Cell("uniformity ↓"), number(before.get("uniformity"), ".3f"), number(after["uniformity"], ".3f")])
    heads = ("", "before training", "after")
    return Table(f"Embeddings of {after['rows']:,} rows; ↓ marks where less is better", heads, rows, frozenset({1, 2}))


def comparison_section(comparison: Mapping[str, Any] | None, pick: Pick) -> Section | None:
    """Returns one model of all tasks against a model a task."""
    if not comparison:
        return None
    blocks: list[Block] = [Text(comparison["verdict"]["text"], is_main=True)]
    blocks += [Pictures(pictures)] if (pictures := pick("gains")) else []
    blocks += [_compared_table(comparison), _cost_table(comparison["cost"], len(comparison["tasks"]))]
    if pictures := pick("transfer"):
        blocks += [
            Text("What a task gains by being trained together with one other, against alone."),
            Pictures(pictures),
        ]
    return Section("comparison", "One model or several", blocks)


def _compared_table(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for name, task in comparison["tasks"].items():
        probe, ends = task.get("probe") or {}, task["difference"]
        means = [number(some.get("mean")) for some in (task["multi_task"], task["single_task"], probe)]
        difference = [number(ends["value"], "+.4f"), interval(ends["low"], ends["high"], "+.4f")]
        rows.append([Cell(name), Cell(task["metric"]), *means, *difference, Cell(task["verdict"])])
    heads = ("task", "metric", "one model", "its own model", "untuned encoder", "difference", "interval", "sharing")
    caption = f"Means over the seeds {', '.join(map(str, comparison.get('plan', {}).get('seeds', [])))}".removesuffix(
        " "
    )
    return Table(caption, heads, rows, frozenset(range(2, 7)))


def _cost_table(cost: Mapping[str, Any], models: int) -> Table:
    names = {
        "training_seconds": ("training, s", ",.0f"),
        "parameters": ("parameters", ",.0f"),
        "disk_mib": ("weights on disk, MiB", ",.1f"),
        "latency_ms": ("latency, ms", ",.1f"),
    }
    rows = [
        [
            Cell(name),
            *(number(cost[who].get(key), form) for who in ("multi_task", "single_task")),
            number(cost["ratio"].get(key), ".2f"),
        ]
        for key, (name, form) in names.items()
        if cost["multi_task"].get(key) is not None
    ]
    heads = ("", "one model", f"{models} models", "ratio")
    return Table("What it costs", heads, rows, frozenset({1, 2, 3}))


def settings_section(report: Mapping[str, Any]) -> Section | None:
    """Returns the settings that are set, the data, versions and machine."""
    settings = {key: value for key, value in report.get("settings", {}).items() if value not in (None, "", [], {})}
    shown = [("Settings", settings), ("Versions", report.get("versions", {})), ("Machine", _machine(report))]
    blocks: list[Block] = []
    if data := report.get("data"):
        rows = [
            [Cell(name), count(size), count(data["truncated"].get(name, 0))] for name, size in data["rows"].items()
        ]
        blocks.append(Table("Data", ("split", "rows", "truncated texts"), rows, frozenset({1, 2})))
    blocks += [
        Table(title, ("", ""), [[Cell(key), _value(values[key])] for key in values], is_folded=title == "Settings")
        for title, values in shown
        if values
    ]
    return Section("settings", "Settings and machine", blocks) if blocks else None


def _machine(report: Mapping[str, Any]) -> dict[str, Any]:
    machine = dict(report.get("machine", {}))
    if report.get("peak_memory_mib"):
        machine["peak memory, MiB"] = report["peak_memory_mib"]
    return machine


def _value(value: Any) -> Cell:
    return Cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))

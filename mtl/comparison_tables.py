"""A comparison as Markdown: the verdict, what it rests on, what it saves, and what one task does to another."""

from collections.abc import Mapping
from typing import Any

_COSTS = {
    "training_seconds": ("training, s", ",.0f"),
    "parameters": ("parameters", ",d"),
    "disk_mib": ("weights on disk, MiB", ",.1f"),
    "latency_ms": ("latency, ms", ",.1f"),
}


def comparison_tables(comparison: Mapping[str, Any]) -> str:
    """Formats a comparison, as `compare_parts` returns it with its plan, as Markdown."""
    blocks = [
        f"**{comparison['verdict']['decision']}**: {comparison['verdict']['text']}",
        _tasks(comparison),
        _mean_gain(comparison),
        _costs(comparison),
    ]
    if comparison["transfer"] is not None:
        blocks.append(_transfer(comparison["transfer"]))
    blocks.append(_circumstances(comparison))
    return "\n\n".join(blocks)


def _tasks(comparison: Mapping[str, Any]) -> str:
    has_probe = any(task["probe"] is not None for task in comparison["tasks"].values())
    heads = ["task", "metric", "multi-task", "single-task", *(["untuned encoder"] if has_probe else [])]
    heads += ["difference", "gain, %", *(["to the untuned"] if has_probe else []), "sharing"]
    rows = []
    for name, task in comparison["tasks"].items():
        arrow = " (lower is better)" if task["lower_is_better"] else ""
        cells = [f"`{name}`", f"{task['metric']}{arrow}", _spread(task["multi_task"]), _spread(task["single_task"])]
        cells += [_spread(task["probe"])] if has_probe else []
        cells += [_estimate(task["difference"]), _signed(task["relative_gain_percent"], ".2f")]
        cells += [_estimate(task["difference_to_probe"])] if has_probe else []
        rows.append([*cells, task["verdict"]])
    return _table(heads, rows)


def _spread(figures: Mapping[str, Any] | None) -> str:
    if figures is None or figures["mean"] is None:
        return "-"
    spread = "" if figures["std"] is None else f" ± {figures['std']:.4f}"
    return f"{figures['mean']:.4f}{spread}"


def _estimate(estimate: Mapping[str, Any] | None, form: str = ".4f") -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return _signed(estimate["value"], form)
    return f"{estimate['value']:+{form}} [{estimate['low']:+{form}}, {estimate['high']:+{form}}]"


def _signed(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:+{form}}"


def _mean_gain(comparison: Mapping[str, Any]) -> str:
    level = 100 * comparison["plan"]["confidence_level"]
    mean, count = comparison["mean_relative_gain_percent"], len(comparison["tasks"])
    which = f"the {count} tasks"
    if len(mean["tasks"]) < count:
        which = f"{len(mean['tasks'])} of {which}, those with a gain in percent"
    return (
        f"Mean relative gain over {which}: {_estimate(mean, '.2f')} %. Its interval holds with {level:g} %, those of "
        f"the tasks with {level:g} % all together."
    )


def _costs(comparison: Mapping[str, Any]) -> str:
    cost = comparison["cost"]
    rows = [
        [
            title,
            *(f"{cost[who][key]:{form}}" for who in ("multi_task", "single_task")),
            "-" if cost["ratio"][key] is None else f"{cost['ratio'][key]:.2f}",
        ]
        for key, (title, form) in _COSTS.items()
        if key in cost["multi_task"]
    ]
    text = _table(["", "1 model", f"{len(comparison['tasks'])} models", "ratio"], rows)
    about = cost["latency_of"]
    if about is None:
        return text
    return (
        f"{text}\n\nTraining is the mean over the seeds, with its evaluations. Latency is of {about['texts']} texts "
        f"in one batch on {about['device']}, tokens and all, the models one after the other; the median of "
        f"{about['repeats']} calls in turn."
    )


def _transfer(transfer: Mapping[str, Any]) -> str:
    names = transfer["tasks"]
    rows = [
        [f"`{name}`", *(_signed(value, ".2f") for value in row)]
        for name, row in zip(names, transfer["matrix"], strict=True)
    ]
    heads = ["gain of, %", *(f"with `{name}`" for name in names)]
    return f"{_table(heads, rows)}\n\nTrained in pairs, against alone; means over the seeds, without intervals."


def _circumstances(comparison: Mapping[str, Any]) -> str:
    plan, machine, versions = comparison["plan"], comparison["machine"], comparison["versions"]
    seeds = plan["seeds"]
    which = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    epochs = ", ".join(f"{name} {part['epochs']:.2f}" for name, part in plan["parts"].items())
    return (
        f"{plan['max_steps']:,} optimizer steps of {plan['rows_per_step']} rows each, {which}, in "
        f"{comparison['precision']} on {machine['cpu_count']} CPU cores ({machine['platform']}, torch "
        f"{versions['torch']}, transformers {versions['transformers']}). Epochs: {epochs}."
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""What a search found, as text: a trial in a line, and the best ones with their settings as YAML to copy."""

from collections.abc import Mapping
from typing import Any

import yaml

_OF_TASK = "weight_"


def trial_line(trial: Mapping[str, Any]) -> str:
    """Formats a trial of `search.json`: its number, its metrics, and what was sampled."""
    figures = [f"{name} {value:.4f}" for name, value in trial["metrics"].items() if value is not None]
    if trial["state"] != "complete":
        figures.append("without a value")
    given = ", ".join(f"{name} {value:.3g}" for name, value in trial["params"].items())
    return f"{trial['number']:>3}  {', '.join(figures)}  ({given})"


def summary(results: Mapping[str, Any]) -> str:
    """Formats the best trials with their metrics, and their settings as YAML, as lines of text."""
    lines = [f"{len(results['trials'])} trials; best by {results['settings']['objectives']}:"]
    for number in results["best"]:
        trial = results["trials"][number]
        block = yaml.safe_dump(_as_settings(trial["params"]), sort_keys=False)
        lines += [f"  {trial_line(trial)}", *(f"       {line}" for line in block.splitlines())]
    lines.append("These are settings of a file, four digits of each; a weight goes to the task of its name there.")
    return "\n".join(lines)


def _as_settings(params: Mapping[str, float]) -> dict[str, Any]:
    rounded = {name: float(f"{value:.4g}") for name, value in params.items()}
    weights = [
        {"name": name.removeprefix(_OF_TASK), "weight": value}
        for name, value in rounded.items()
        if name.startswith(_OF_TASK)
    ]
    rates: dict[str, Any] = {name: value for name, value in rounded.items() if not name.startswith(_OF_TASK)}
    return rates | ({"tasks": weights} if weights else {})

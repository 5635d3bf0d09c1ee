"""The finished parts of a comparison -> what sharing does to each task, what it saves, and a verdict.

The mean relative gain over the tasks is the Delta_m of Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of
Multiple Tasks", CVPR 2019, section 5, as surveyed by Vandenhende et al., "Multi-Task Learning for Dense Prediction
Tasks: A Survey", TPAMI 2021. The matrix of pairs is that of Standley et al., "Which Tasks Should Be Learned Together
in Multi-task Learning?", ICML 2020.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from configuration_mtl import TaskConfig
from mtl.comparison_parts import FinishedPart
from mtl.comparison_plan import MULTI, PAIR, PROBE, SINGLE
from mtl.evaluation import json_number
from mtl.metrics import LOWER_IS_BETTER
from mtl.paired_intervals import Estimate, PairedModels, drawn_differences, interval
from mtl.verdict import Gain, judge

LEVEL = 0.95
"""Probability with which the intervals of all tasks hold together, and that of the mean gain."""
LEAST_ROWS = 20
"""Labelled test rows that a task needs for an interval. Of one row it would be a point, and that of two equally good
models would leave 0 out in two cases of five."""
_SEED_OF_ROWS = 0
_COSTS = ("training_seconds", "parameters", "disk_mib", "latency_ms")


def compare_parts(
    parts: Sequence[FinishedPart],
    tasks: Sequence[TaskConfig],
    *,
    metrics: Mapping[str, str],
    tolerance: float = 0.0,
    resamples: int = 1000,
    latency: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares the multi-task model with a model a task, over the seeds of which all these are finished.

    Args:
        parts: The finished parts.
        tasks: The compared tasks.
        metrics: Key of the metric of each.
        tolerance: Harm that is accepted, in percent.
        resamples: Resamples of the test rows.
        latency: Latency in ms of `multi_task` and `single_task`, all models of the latter one after the other, and
            under `about` how it was measured.

    Returns:
        JSON-ready values: `tasks`, `mean_relative_gain_percent`, `verdict`, `cost` and `transfer`; docs/comparison.md
        says what each is.

    Raises:
        ValueError: If no seed is finished, or two parts have other test rows or labels of a task.
    """
    seeds, shared, singles = _whole_seeds(parts, tasks)
    probes = [part for part in parts if part.part.kind == PROBE]
    against_single = [_paired(task, metrics[task.name], shared, singles[task.name]) for task in tasks]
    against_probe = [
        _paired(task, metrics[task.name], shared, [probe] * len(seeds))
        for probe in probes
        for task in tasks
        if task.name in probe.logits
    ]
    differences = _Differences.of(against_single, resamples)
    to_probe = _Differences.of(against_probe, resamples)
    factors = {name: _percent_factor(some, metrics[name]) for name, some in differences.scores.items()}
    cost = _cost(shared, singles, latency)
    gains = [_gain(name, differences, factors[name]) for name in differences.of_task]
    words = _cost_in_words(cost, len(tasks))
    verdict = judge(gains, tolerance=tolerance, level=LEVEL, num_seeds=len(seeds), cost=words)
    figures = {
        pair.name: _task_figures(pair, differences, factors[pair.name])
        | _probe_figures(pair.name, to_probe)
        | dataclasses.asdict(verdict.by_task[pair.name])
        for pair in against_single
    }
    return {
        "tasks": figures,
        "mean_relative_gain_percent": _mean_gain(differences, factors),
        "verdict": {
            "decision": verdict.decision,
            "split_off": list(verdict.split_off),
            "text": verdict.text + _warning(to_probe, metrics),
        },
        "cost": cost,
        "transfer": _transfer(parts, singles, tasks, metrics, seeds),
        "seeds": seeds,
    }


def _whole_seeds(
    parts: Sequence[FinishedPart], tasks: Sequence[TaskConfig]
) -> tuple[list[int | None], list[FinishedPart], dict[str, list[FinishedPart]]]:
    """Returns the seeds that are finished, and for each one the multi-task part, and by task the single-task part."""
    by_key = {(part.part.kind, part.part.tasks, part.part.seed): part for part in parts}
    multi = {part.part.seed: part for part in parts if part.part.kind == MULTI}
    seeds = [seed for seed in multi if all((SINGLE, (task.name,), seed) in by_key for task in tasks)]
    if not seeds:
        raise ValueError("No seed has the multi-task model and every single-task model finished.")
    singles = {task.name: [by_key[SINGLE, (task.name,), seed] for seed in seeds] for task in tasks}
    return seeds, [multi[seed] for seed in seeds], singles


def _paired(
    task: TaskConfig, metric: str, first: Sequence[FinishedPart], second: Sequence[FinishedPart]
) -> PairedModels:
    of_first, of_second = ([part.of_task(task.name) for part in some] for some in (first, second))
    places, labels, _ = of_first[0]
    for part, (other_places, other_labels, _) in zip([*first, *second], [*of_first, *of_second], strict=True):
        if not np.array_equal(places, other_places) or not np.array_equal(labels, other_labels, equal_nan=True):
            raise ValueError(
                f"Task {task.name!r}: {part.part.name} was measured on other test rows or labels than "
                f"{first[0].part.name}. Train it anew: remove its folder."
            )
    models = [(one[2], other[2]) for one, other in zip(of_first, of_second, strict=True)]
    return PairedModels(task.name, metric, places, labels, models)


@dataclasses.dataclass(frozen=True, eq=False)
class _Differences:
    """Differences by task, with intervals that hold together; the scores by seed, and what the resamples gave.

    A task with fewer than `LEAST_ROWS` rows has no interval.
    """

    of_task: dict[str, Estimate]
    scores: dict[str, npt.NDArray[np.float64]]
    drawn: dict[str, npt.NDArray[np.float64]]

    @classmethod
    def of(cls, pairs: Sequence[PairedModels], resamples: int) -> "_Differences":
        enough = [pair for pair in pairs if len(pair.labels) >= LEAST_ROWS]
        drawn = drawn_differences(enough, resamples=resamples, seed=_SEED_OF_ROWS)
        scores = {pair.name: pair.scores() for pair in pairs}  # (2, seeds) each
        # Bonferroni: that any of the intervals misses is at most as likely as that one of `LEVEL` does.
        level = 1 - (1 - LEVEL) / max(1, len(drawn))
        of_task = {name: interval(some, drawn.get(name), level=level) for name, some in scores.items()}
        return cls(of_task, scores, drawn)


def _percent_factor(scores: npt.NDArray[np.float64], metric: str) -> float | None:
    """Returns what makes a difference a gain in percent of the second model's mean; None if that is 0 or undefined."""
    alone = float(scores[1].mean())
    if math.isnan(alone) or alone == 0:
        return None
    return (-100.0 if metric in LOWER_IS_BETTER else 100.0) / abs(alone)


def _gain(name: str, differences: _Differences, factor: float | None) -> Gain:
    scaled = Estimate(None) if factor is None else differences.of_task[name].times(factor)
    multi, single = np.isnan(differences.scores[name])  # (seeds,) each
    return Gain(name, scaled.value, scaled.low, scaled.high, is_lost=bool((multi & ~single).any()))


def _mean_gain(differences: _Differences, factors: Mapping[str, float | None]) -> dict[str, Any]:
    """Returns the mean gain with its interval, and the `tasks` that it is over: those with a gain in percent."""
    names = [
        name for name, factor in factors.items() if factor is not None and differences.of_task[name].value is not None
    ]
    if not names:
        return {**dataclasses.asdict(Estimate(None)), "tasks": names}
    scaled: list[Any] = [factors[name] for name in names]
    scores = np.mean([differences.scores[name] * by for name, by in zip(names, scaled, strict=True)], axis=0)
    drawn = None
    if all(name in differences.drawn for name in names):
        drawn = np.mean([differences.drawn[name] * by for name, by in zip(names, scaled, strict=True)], axis=0)
    return {**dataclasses.asdict(interval(scores, drawn, level=LEVEL)), "tasks": names}


def _task_figures(pair: PairedModels, differences: _Differences, factor: float | None) -> dict[str, Any]:
    difference = differences.of_task[pair.name]
    multi, single = differences.scores[pair.name]
    return {
        "metric": pair.metric,
        "lower_is_better": pair.metric in LOWER_IS_BETTER,
        "support": len(pair.labels),
        "multi_task": _spread(multi.tolist()),
        "single_task": _spread(single.tolist()),
        "difference": dataclasses.asdict(difference),
        "relative_gain_percent": None if factor is None or difference.value is None else difference.value * factor,
    }


def _probe_figures(name: str, differences: _Differences) -> dict[str, Any]:
    if name not in differences.of_task:
        return {"probe": None, "difference_to_probe": None}
    probe = differences.scores[name][1, :1]  # It is the same for every seed.
    return {"probe": _spread(probe.tolist()), "difference_to_probe": dataclasses.asdict(differences.of_task[name])}


def _warning(to_probe: _Differences, metrics: Mapping[str, str]) -> str:
    """Returns what is added to the verdict where the shared model is not trained well enough to judge by it."""
    # A figure that is less of an error is turned round, so that below 0 is worse.
    signed = {
        name: difference.times(-1.0 if metrics[name] in LOWER_IS_BETTER else 1.0)
        for name, difference in to_probe.of_task.items()
    }
    worse = [name for name, difference in signed.items() if difference.high is not None and difference.high < 0]
    if not worse:
        return ""
    return (
        f" In {', '.join(worse)} the multi-task model is below linear models on the untuned encoder, so it has not "
        "learned what was there already: train longer, or with other rates, before you go by this."
    )


def _spread(values: Sequence[float]) -> dict[str, Any]:
    several = len(values) > 1
    return {
        "mean": json_number(float(np.mean(values))),
        "std": json_number(float(np.std(values, ddof=1))) if several else None,
        "by_seed": [json_number(float(value)) for value in values],
    }


def _cost(
    shared: Sequence[FinishedPart], singles: Mapping[str, Sequence[FinishedPart]], latency: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns what one model costs, and all single-task models together; trainings are means over the seeds."""
    one = {key: float(np.mean([part.record[key] for part in shared])) for key in _COSTS[:3]}
    several = {key: sum(float(np.mean([part.record[key] for part in of])) for of in singles.values()) for key in one}
    for costs, who in ((one, "multi_task"), (several, "single_task")):
        if latency is not None:
            costs["latency_ms"] = float(latency[who])
        costs["parameters"] = int(costs["parameters"])
    ratio = {key: several[key] / one[key] if one[key] else None for key in one}
    return {
        "multi_task": one,
        "single_task": several,
        "ratio": ratio,
        "latency_of": None if latency is None else latency["about"],
    }


def _cost_in_words(cost: Mapping[str, Any], num_models: int) -> str:
    one, several = cost["multi_task"], cost["single_task"]
    text = f"one model in place of {num_models} is {one['disk_mib']:,.0f} MiB in place of {several['disk_mib']:,.0f}"
    if "latency_ms" in one:
        text += f" and answers in {one['latency_ms']:,.0f} ms in place of {several['latency_ms']:,.0f}"
    return text


def _transfer(
    parts: Sequence[FinishedPart],
    singles: Mapping[str, Sequence[FinishedPart]],
    tasks: Sequence[TaskConfig],
    metrics: Mapping[str, str],
    seeds: Sequence[int | None],
) -> dict[str, Any] | None:
    """Returns what each task gains, in percent, by being trained together with each other one, where this was done."""
    names = [task.name for task in tasks]
    together = [part for part in parts if part.part.kind == PAIR or (part.part.kind == MULTI and len(names) == 2)]
    together = [part for part in together if part.part.seed in seeds and set(part.part.tasks) <= set(names)]
    if not any(part.part.kind == PAIR for part in parts):
        return None
    matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
    for row, task in enumerate(tasks):
        alone = {part.part.seed: part for part in singles[task.name]}
        for column, other in enumerate(names):
            both = [part for part in together if set(part.part.tasks) == {task.name, other} and other != task.name]
            if both:
                pair = _paired(task, metrics[task.name], both, [alone[part.part.seed] for part in both])
                scores = pair.scores()
                factor = _percent_factor(scores, pair.metric)
                gain = float(np.subtract(*scores.mean(axis=1)))
                matrix[row][column] = None if factor is None else json_number(gain * factor)
    return {"tasks": names, "matrix": matrix}

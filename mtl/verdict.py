"""From gains with intervals to a decision in words: keep tasks in one model, split some off, or look again.

Everything here goes by percent of what the single-task model reaches, signed so that more is better. The intervals
must hold for all tasks together: a decision over several tasks is wrong as soon as one of its intervals is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HELPS, HARMS, NO_EVIDENCE, NOT_JUDGED = "helps", "harms", "no evidence", "not judged"
"""What sharing does to a task."""
KEEP, SPLIT, UNDECIDED = "keep together", "split off", "no evidence"
"""What to do."""
_ROUNDING = 1e-9
"""Percent that are none: a mean over seeds of equal figures may be off by its last digit."""


@dataclass(frozen=True)
class Gain:
    """What a task gains by being trained with the others, in percent of what it reaches alone; below 0 is harm.

    Args:
        task: Name of the task.
        value: The gain; None if a figure is undefined.
        low: Lower end of its interval; None if there is none.
        high: Upper end.
        is_lost: Whether a model of all tasks has no figure where that of the task alone has one.
    """

    task: str
    value: float | None
    low: float | None = None
    high: float | None = None
    is_lost: bool = False


@dataclass(frozen=True)
class TaskVerdict:
    """What sharing does to a task.

    Args:
        verdict: `helps`, `harms`, `no evidence` or `not judged`.
        reason: Why, with the numbers.
    """

    verdict: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What to do with the tasks.

    Args:
        decision: `keep together`, `split off` or `no evidence`.
        split_off: The tasks to train apart.
        text: The decision in words.
        by_task: What sharing does to each task.
    """

    decision: str
    split_off: tuple[str, ...]
    text: str
    by_task: dict[str, TaskVerdict]


def judge(gains: Sequence[Gain], *, tolerance: float = 0.0, level: float = 0.95, num_seeds: int, cost: str) -> Verdict:
    """Decides.

    A task is to be split off if its whole interval lies below `-tolerance`. The tasks are to be kept together if no
    interval reaches below `-tolerance`, or if one lies above 0 and none below it; and no figure is lost. Else there is
    no evidence.

    An interval that ends at 0 exactly excludes no harm, whatever is accepted: among the rows there is none on which
    the model of all tasks is the worse one, and of few rows that is so by chance, as resamples of them cannot show.

    Args:
        gains: What each compared task gains.
        tolerance: Harm that is accepted, in percent.
        level: Probability with which all intervals hold together.
        num_seeds: Count of trainings of each model.
        cost: What one model in place of several saves, in words.
    """
    by_task = {gain.task: judge_task(gain) for gain in gains}
    judged = [gain for gain in gains if by_task[gain.task].verdict != NOT_JUDGED]
    split = tuple(gain.task for gain in judged if _high(gain) < -tolerance)
    helps, harms = (_named(by_task, verdict) for verdict in (HELPS, HARMS))
    lost = [gain.task for gain in gains if gain.is_lost]
    is_bounded = bool(judged) and all(_excludes(gain, tolerance) for gain in judged)
    if split:
        decision = SPLIT
        text = _splitting(split, [gain.task for gain in gains], judged, num_seeds)
    elif not lost and (is_bounded or (helps and not harms)):
        decision = KEEP
        text = _keeping(helps, judged, tolerance, cost)
    else:
        decision = UNDECIDED
        text = "No evidence for keeping the tasks together." if lost else _undecided(judged, harms, cost)
    told = [text, *_loss(lost), *_caveats(by_task, len(judged), level, num_seeds)]
    return Verdict(decision, split, " ".join(told), by_task)


def judge_task(gain: Gain) -> TaskVerdict:
    """Says what sharing does to a task by its interval alone, whatever harm is accepted."""
    if gain.is_lost:
        return TaskVerdict(NOT_JUDGED, "The figure of a model of all tasks is undefined, though it is not so alone.")
    if gain.value is None:
        return TaskVerdict(NOT_JUDGED, "There is no gain in percent: a figure is undefined, or 0 alone.")
    if gain.low is None or gain.high is None:
        return TaskVerdict(NOT_JUDGED, f"{gain.value:+.2f} %; it has no interval, so chance is not ruled out.")
    shown = f"{gain.value:+.2f} % [{gain.low:+.2f}, {gain.high:+.2f}]"
    if _ends_at_zero(gain):
        return TaskVerdict(NO_EVIDENCE, f"{shown}: the models differ on too few rows to exclude a harm.")
    if gain.low > 0:
        return TaskVerdict(HELPS, f"{shown}: the interval is above 0.")
    if gain.high < 0:
        return TaskVerdict(HARMS, f"{shown}: the interval is below 0.")
    return TaskVerdict(NO_EVIDENCE, f"{shown}: a harm of more than {-gain.low:.2f} % is excluded, none smaller.")


def _splitting(split: Sequence[str], names: Sequence[str], judged: Sequence[Gain], num_seeds: int) -> str:
    losses = _listed(f"{gain.task} loses {-(gain.value or 0.0):.2f} %" for gain in judged if gain.task in split)
    rest = [name for name in names if name not in split]
    chance = "the test rows" + (" and the trainings" if num_seeds > 1 else "")
    what = f"Split off {_listed(split)}: trained with the others {losses}, more than chance of {chance} explains."
    if len(rest) < 2:
        return f"{what} No two tasks are left to share a model: train each alone."
    return f"{what} Train {_listed(rest)} together, and compare again without what was split off."


def _keeping(helps: Sequence[str], judged: Sequence[Gain], tolerance: float, cost: str) -> str:
    why = f"Sharing helps {_listed(helps)}" if helps else "Sharing harms no task"
    if not helps and tolerance > 0:
        why += f" by more than the accepted {tolerance:g} %"
    text = f"Keep the tasks together. {why}, and {cost}."
    if harmed := [gain for gain in judged if _high(gain) < 0]:
        losses = _listed(f"{gain.task} loses {-(gain.value or 0.0):.2f} %" for gain in harmed)
        text += f" {losses}, within the accepted {tolerance:g} %."
    if open_tasks := [gain for gain in judged if not _excludes(gain, tolerance)]:
        doubt = _listed(f"{_bound(gain)} for {gain.task}" for gain in open_tasks)
        text += f" No harm is proven, nor ruled out: {doubt}."
    return text


def _undecided(judged: Sequence[Gain], harms: Sequence[str], cost: str) -> str:
    if not judged:
        return "No evidence: no task has a metric with an interval."
    within = f" {_listed(harms)} is harmed, but by how much is open." if harms else ""
    said = f"No evidence that sharing helps or harms.{within}"
    if silent := [gain.task for gain in judged if _ends_at_zero(gain)]:
        return (
            f"{said} The models differ on too few test rows to exclude a harm for {_listed(silent)}: measure on more. "
            f"What would be gained: {cost}."
        )
    worst = min(judged, key=_low)
    return (
        f"{said} Harms of more than {-_low(worst):.2f} % ({worst.task}) are excluded. If that is too much to risk, "
        f"train with more seeds or measure on more test rows; if not, {cost}."
    )


def _loss(lost: Sequence[str]) -> list[str]:
    if not lost:
        return []
    return [
        f"With the others, {_listed(lost)} has no figure at all where it has one alone, as of outputs that are all "
        "the same: look at that training first."
    ]


def _excludes(gain: Gain, tolerance: float) -> bool:
    return _low(gain) >= -tolerance and not _ends_at_zero(gain)


def _ends_at_zero(gain: Gain) -> bool:
    return abs(_low(gain)) < _ROUNDING


def _bound(gain: Gain) -> str:
    return "of a size that so few rows do not tell" if _ends_at_zero(gain) else f"up to {-_low(gain):.2f} %"


def _caveats(by_task: dict[str, TaskVerdict], num_judged: int, level: float, num_seeds: int) -> list[str]:
    told = []
    if silent := _named(by_task, NOT_JUDGED):
        told.append(f"Not judged: {_listed(silent)}.")
    if num_judged > 1:
        told.append(f"The intervals of the {num_judged} tasks hold together with {100 * level:g} %.")
    if num_seeds == 1:
        told.append(
            "One seed: the intervals hold for these very models. Another training may differ by more; compare with "
            "three seeds or more before you act."
        )
    if num_seeds == 2:
        told.append("Two seeds hardly bound how much trainings differ; a third one narrows the intervals.")
    return told


def _named(by_task: dict[str, TaskVerdict], verdict: str) -> list[str]:
    return [name for name, judged in by_task.items() if judged.verdict == verdict]


def _low(gain: Gain) -> float:
    assert gain.low is not None
    return gain.low


def _high(gain: Gain) -> float:
    assert gain.high is not None
    return gain.high


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last

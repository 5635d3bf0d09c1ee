"""What is to be fitted of which task, and what is refused before anything is trained."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configuration_mtl import TaskConfig
from mtl.settings import RunSettings
from tasks_mtl import CLASS_TYPES, MULTI_LABEL, PROBABILITY_TYPES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationPlan:
    """What is to be fitted of one task.

    Args:
        temperature: Whether a temperature is.
        label_thresholds: Whether a threshold of each label is.
        abstention_error_rate: Share of the rows that are kept which may be wrong, at the threshold for abstention that
            is to be fitted; None to fit none.
    """

    temperature: bool = False
    label_thresholds: bool = False
    abstention_error_rate: float | None = None


def make_plans(
    tasks: Sequence[TaskConfig],
    *,
    temperature: bool | Collection[str] = True,
    label_thresholds: bool | Collection[str] = False,
    abstention_error_rate: float | Mapping[str, float] | None = None,
) -> dict[str, CalibrationPlan]:
    """Returns the plans of the tasks of which something is to be fitted.

    Args:
        tasks: The tasks.
        temperature: Of which tasks: all that give probabilities (True), none (False), or those named.
        label_thresholds: Of which tasks: all multi-label ones (True), none (False), or those named.
        abstention_error_rate: The rate for all tasks with classes, or of those named.

    Raises:
        ValueError: If a name is that of no task that can have what is to be fitted, no task can have thresholds that
            are asked for, or a rate is out of range.
    """
    with_temperature = _chosen(tasks, temperature, PROBABILITY_TYPES, "temperature")
    with_thresholds = _chosen(tasks, label_thresholds, (MULTI_LABEL,), "label_thresholds")
    rates = abstention_error_rate
    if not isinstance(rates, Mapping):
        names = _chosen(tasks, rates is not None, CLASS_TYPES, "abstention_error_rate")
        rates = {} if rates is None else dict.fromkeys(names, rates)
    _chosen(tasks, rates, CLASS_TYPES, "abstention_error_rate")
    _check_rates(rates.values())
    plans = {
        task.name: CalibrationPlan(task.name in with_temperature, task.name in with_thresholds, rates.get(task.name))
        for task in tasks
    }
    return {name: plan for name, plan in plans.items() if plan != CalibrationPlan()}


def check_calibration_data(plans: Mapping[str, CalibrationPlan], dataset: Any) -> None:
    """Checks that there is one data set to fit on, if anything is to be fitted.

    Raises:
        ValueError: If there is none, or several.
    """
    if not plans:
        return
    if dataset is None:
        raise ValueError(
            f"Temperatures and thresholds (here of {list(plans)}) are fitted on validation, and there is none. Add a "
            "split, or leave out `calibrate`, `fit_label_thresholds` and `abstention_error_rate`."
        )
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"Temperatures and thresholds (here of {list(plans)}) are fitted on one data set, found several: "
            f"{list(dataset)}. Give one of them."
        )


def wanted_of_run(
    settings: RunSettings, tasks: Sequence[TaskConfig], *, trains: bool, has_validation: bool
) -> dict[str, Any]:
    """Returns what a run is to fit, as arguments of [`make_plans`]; what the settings of a task give is not fitted.

    Args:
        settings: The settings of the run.
        tasks: Its tasks, with what a saved model has of them.
        trains: Whether anything is trained.
        has_validation: Whether there are rows to fit on.
    """
    scaled, labelled, abstaining = _open_tasks(settings, tasks)
    is_default = trains and has_validation
    calibrates = is_default if settings.calibrate is None else settings.calibrate
    rate = settings.abstention_error_rate
    return {
        "temperature": [task.name for task in scaled if calibrates],
        "label_thresholds": [
            task.name
            for task in labelled
            if settings.fit_label_thresholds or (is_default and task.label_thresholds is not None)
        ],
        "abstention_error_rate": {task.name: rate for task in abstaining if rate is not None},
    }


def check_wanted_of_run(
    settings: RunSettings, tasks: Sequence[TaskConfig], *, trains: bool, has_validation: bool
) -> None:
    """Refuses what would have no effect, or keep a threshold that no longer holds; arguments as [`wanted_of_run`].

    Raises:
        ValueError: If something is asked for that no task can have or that is given for all of them, or training makes
            an abstention threshold of a saved model stale and no rate is given to fit it anew.
    """
    scaled, labelled, abstaining = _open_tasks(settings, tasks)
    for key, is_asked_for, able in (
        ("calibrate", settings.calibrate, scaled),
        ("fit_label_thresholds", settings.fit_label_thresholds, labelled),
        ("abstention_error_rate", settings.abstention_error_rate is not None, abstaining),
    ):
        if is_asked_for and not able:
            raise ValueError(
                f"{key} has no effect: no task gives such probabilities, or the settings of those that do say already "
                "what would be fitted. Leave it out."
            )
    stale = [task.name for task in abstaining if task.abstention_threshold is not None]
    if trains and stale and settings.abstention_error_rate is None:
        raise ValueError(
            f"The saved model has an abstention_threshold of {stale}, which no longer holds when it is trained. Set "
            "`abstention_error_rate` to fit it anew, or give the task's `abstention_threshold` (0 never abstains)."
        )
    kept = [task.name for task in scaled if task.calibration_temperature is not None]
    kept += [task.name for task in labelled if task.label_thresholds is not None and task.name not in kept]
    if trains and kept and not has_validation:
        logger.warning(
            "What the saved model's probabilities of %s were calibrated by stays: there are no validation rows to fit "
            "it anew on, and training makes it less exact.",
            kept,
        )


def _open_tasks(settings: RunSettings, tasks: Sequence[TaskConfig]) -> tuple[list[TaskConfig], ...]:
    """Returns the tasks that may get a temperature, thresholds of labels, and one for abstention, which none gives."""
    given = {task.name: task for task in settings.task_configs()}
    kinds = (
        ("calibration_temperature", PROBABILITY_TYPES),
        ("label_thresholds", (MULTI_LABEL,)),
        ("abstention_threshold", CLASS_TYPES),
    )
    return tuple(
        [task for task in tasks if task.problem_type in types and getattr(given[task.name], key) is None]
        for key, types in kinds
    )


def _chosen(
    tasks: Sequence[TaskConfig], wanted: bool | Collection[str], types: Sequence[str], setting: str
) -> Collection[str]:
    known = [task.name for task in tasks if task.problem_type in types]
    if isinstance(wanted, bool):
        if wanted and not known and setting != "temperature":  # That is on by default, also where nothing has one.
            raise ValueError(f"{setting} has no effect: no task is of the types {list(types)}. Leave it out.")
        return known if wanted else ()
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"{setting}: {unknown} are no tasks of the types {list(types)}; those are {known}.")
    return wanted


def _check_rates(rates: Iterable[Any]) -> None:
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
            raise ValueError(f"abstention_error_rate must be at least 0 and below 1, found {rate!r}.")

"""Which share of each task's training loss goes to all classes alike."""

from collections.abc import Sequence

from configuration_mtl import TaskConfig
from tasks_mtl import SINGLE_LABEL


def label_smoothing(tasks: Sequence[TaskConfig], factor: float) -> dict[str, float]:
    """Returns the label smoothing of each single-label task that has any.

    Args:
        tasks: The tasks; one that says its `label_smoothing`, 0 too, has that.
        factor: Smoothing of the others, `label_smoothing_factor` of the training.

    Raises:
        ValueError: If there is a factor, but no task that it could have an effect on.
    """
    single = [task for task in tasks if task.problem_type == SINGLE_LABEL]
    if factor and all(task.label_smoothing is not None for task in single):
        raise ValueError(
            f"label_smoothing_factor={factor} has no effect: every single-label task of {[t.name for t in tasks]} has "
            "a `label_smoothing` of its own, or there is none. Leave it at 0."
        )
    shares = {task.name: factor if task.label_smoothing is None else task.label_smoothing for task in single}
    return {name: share for name, share in shares.items() if share}

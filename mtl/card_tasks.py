"""What a model card says of the tasks: what each head gives, with which settings, and the names of all labels."""

from collections.abc import Collection, Sequence

from configuration_mtl import MTLConfig, TaskConfig
from mtl.markdown import cell, code, literal

_SETTINGS = (
    "hidden_size", "cosine_scale", "label_smoothing", "temperature", "margin", "symmetric", "out_of_scope_label"
)  # fmt: skip
"""Settings of a task that its row shows where they are not the default."""
_MOST_LABELS = 12
"""Count of labels that a row has room for."""
_LONGEST_LABEL = 60


def tasks_section(config: MTLConfig, kept: Collection[str] = ()) -> list[str]:
    """Returns the table of the tasks, and below it all labels of those whose row has no room for them.

    Args:
        config: The model's configuration.
        kept: Names of the tasks that have a head of an earlier run, and no data in this one.
    """
    rows = [_task_row(task, is_kept=task.name in kept) for task in config.tasks]
    lists = [_label_list(task.name, task.labels) for task in config.tasks if task.labels and _is_cut(task.labels)]
    return ["## Tasks\n", "| task | type | outputs | weight |\n|---|---|---|---|", *rows, "", *lists]


def _is_cut(labels: Sequence[str]) -> bool:
    return len(labels) > _MOST_LABELS or any(_cut(label) != label for label in labels)


def _cut(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _label_list(name: str, labels: Sequence[str]) -> str:
    shown = ", ".join(literal(label) for label in labels)
    return f"<details><summary>The {len(labels)} labels of {name}</summary>\n\n{shown}\n\n</details>\n"


def _task_row(task: TaskConfig, *, is_kept: bool = False) -> str:
    """Returns a task's row of the table; what is kept has a head of an earlier run, and no data in this one."""
    if not task.has_head:
        learned = "; ".join(["the embedding", *_own_settings(task)])
        return f"| `{task.name}` | {task.problem_type}, loss {task.loss} | {learned} | {task.weight} |"
    names = [literal(_cut(label)) for label in task.labels or ()]
    more = f" … ({len(names)})" if len(names) > _MOST_LABELS else ""
    shown = ", ".join(names[:_MOST_LABELS]) + more if names else str(task.num_labels)
    shown = cell("; ".join([shown, *_own_settings(task), *_decision(task)]))
    weight = "kept: neither trained nor measured in this run" if is_kept else task.weight
    return f"| `{task.name}` | {task.problem_type} | {shown} | {weight} |"


def _own_settings(task: TaskConfig) -> list[str]:
    """Returns what sets a task apart from one that only has its labels, as it was given."""
    default = TaskConfig(task.name, task.problem_type, labels=task.labels, num_labels=task.num_labels, loss=task.loss)
    return [f"{key} {literal(getattr(task, key))}" for key in _SETTINGS if getattr(task, key) != getattr(default, key)]


def _decision(task: TaskConfig) -> list[str]:
    """Returns what turns logits into a decision, as it was fitted or set."""
    said = []
    if task.calibration_temperature is not None:
        said.append(f"temperature {task.calibration_temperature:.4f}")
    if task.label_thresholds is not None:
        lowest, highest = min(task.label_thresholds), max(task.label_thresholds)
        said.append(f"thresholds of the labels from {lowest:.4f} to {highest:.4f}")
    if task.rejection_threshold is not None:
        said.append(f"{code(task.out_of_scope_label)} below {task.rejection_score} {task.rejection_threshold:.4f}")
    if task.abstention_threshold is not None:
        said.append(f"abstains below score {task.abstention_threshold:.4f}")
    return said

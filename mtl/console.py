"""What a training run shows on the terminal: a bar, a line per log, a table per evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from batching_mtl import Text
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.data import label_column, row_texts
from mtl.metrics import PRIMARY_METRIC
from mtl.preservation import PRESERVATION
from mtl.sources import FURTHER_COLUMNS, PAIR_COLUMN, TEXT_COLUMN, SourceConfig
from tasks_mtl import CLASS_TYPES, IGNORE_INDEX, MULTI_LABEL, OUT_OF_SCOPE_INDEX

_WIDTH_OF_TEXT = 100


class ProgressReport(ProgressCallback):
    """Progress bar of the Trainer, with one line for each training log and each evaluation.

    Args:
        tasks: The tasks, in the order to show them.
    """

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the line above the bar."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.write(self._training_line(state, logs))
        elif "eval_score" in logs:
            self.training_bar.write(self._evaluation_line(logs))

    def _training_line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        names = [task.name for task in self.tasks]
        keys = {f"loss_{name}": name for name in names} | {f"teacher_loss_{name}": f"{name} teacher" for name in names}
        keys[f"loss_{PRESERVATION}"] = PRESERVATION
        parts = [f"{name} {logs[key]:.4f}" for key, name in keys.items() if key in logs]
        return (
            f"step {state.global_step}/{state.max_steps}  epoch {logs['epoch']:.2f}  loss {logs['loss']:.4f} "
            f"({', '.join(parts)})  lr {logs['learning_rate']:.2e}"
        )

    def _evaluation_line(self, logs: dict[str, Any]) -> str:
        losses = ", ".join(f"{task.name} {logs.get(f'eval_{task.name}_loss', math.nan):.4f}" for task in self.tasks)
        parts = []
        for task in self.tasks:
            name = PRIMARY_METRIC[task.problem_type]
            value = logs.get(f"eval_{task.name}_{name}")
            parts.append(f"{task.name} {name} " + ("-" if value is None else f"{value:.4f}"))
        return (
            f"validation, epoch {logs['epoch']:.2f}: loss {logs['eval_loss']:.4f} ({losses}), {', '.join(parts)}, "
            f"score {logs['eval_score']:.4f}"
        )


def metrics_table(title: str, metrics: dict[str, dict[str, float]]) -> str:
    """Formats each task's metrics as lines of text under a title."""
    lines = [title]
    for name, values in metrics.items():
        shown = [f"{key} {value:.4f}" for key, value in values.items() if not key.endswith("support")]
        lines.append(f"  {name:<14} {'  '.join(shown)}  (n={values['support']:,})")
    return "\n".join(lines)


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a heading and rows as lines of text in columns, the first to the left and the others to the right."""
    lines = [heading, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def sample_lines(model: MTLModel, rows: Sequence[Mapping[str, Any]], truths: Sequence[dict[str, str]]) -> str:
    """Formats sentences with the predicted and the true label of each task, by name.

    Texts that a row is compared with follow it, with the cosine of their embeddings.

    Args:
        model: The trained model.
        rows: Rows of the data, with their columns of texts.
        truths: For each row, the true label of each task as text; a task that is left out is not shown.
    """
    lines = []
    columns = {name: [row[name] for row in rows] for name in (TEXT_COLUMN, PAIR_COLUMN) if rows and name in rows[0]}
    texts = row_texts(columns) if rows else []
    for row, text, truth, predicted in zip(rows, texts, truths, model.predict(texts), strict=True):
        lines.append(f"  input      {_short(text)}")
        for task in model.config.tasks:
            if task.name in truth and task.has_head:
                told = f"predicted {shown(task, predicted[task.name])}, true {truth[task.name]}"
                lines.append(f"    {task.name:<14} {told}")
        for other in [row[name] for name in FURTHER_COLUMNS if row.get(name) is not None]:
            first, second = model.encode([row[TEXT_COLUMN], other])  # (H,)
            lines.append(f"    cosine {first @ second:+.3f}  with {_short(other)}")
    return "\n".join(lines)


def _short(text: Text) -> str:
    text = text if isinstance(text, str) else " / ".join(text)
    return text if len(text) <= _WIDTH_OF_TEXT else text[: _WIDTH_OF_TEXT - 1] + "…"


def shown(task: TaskConfig, prediction: Any) -> str:
    """Formats one prediction of `MTLModel.predict` as text."""
    if task.problem_type in CLASS_TYPES:
        unsure = ", abstains" if prediction.get("abstains") else ""
        return f"{prediction['label']} ({prediction['score']:.2f}{unsure})"
    if task.problem_type == MULTI_LABEL:
        return ", ".join(prediction["labels"]) or "none"
    if isinstance(prediction, float):
        return f"{prediction:.2f}"
    return ", ".join(f"{name} {value:.2f}" for name, value in prediction.items())


def sample_truths(
    rows: Sequence[Mapping[str, Any]], tasks: Sequence[TaskConfig], sources: Sequence[SourceConfig]
) -> list[dict[str, str]]:
    """Returns, for each row, the true labels of the tasks that it has a label for or that its source teaches.

    Args:
        rows: Rows of the data.
        tasks: The tasks.
        sources: The sources that they are of.
    """
    taught = {source.name: {*source.labels, *source.teachers} for source in sources}
    return [
        {name: text for name, text in true_labels(row, tasks).items() if name in taught[row["source"]] or text != "-"}
        for row in rows
    ]


def true_labels(row: Mapping[str, Any], tasks: Sequence[TaskConfig]) -> dict[str, str]:
    """Formats the labels of a row of the data as text, by task that has a head; `-` where one is missing."""
    texts = {}
    for task in filter(lambda task: task.has_head, tasks):
        value = row[label_column(task.name)]
        if task.problem_type in CLASS_TYPES:
            others = {IGNORE_INDEX: "-", OUT_OF_SCOPE_INDEX: str(task.out_of_scope_label)}
            texts[task.name] = (task.id2label | others)[value]
        elif task.problem_type == MULTI_LABEL:
            names = [task.id2label[index] for index, cell in enumerate(value) if cell == 1.0]
            texts[task.name] = "-" if all(map(math.isnan, value)) else ", ".join(names) or "none"
        else:
            numbers = value if isinstance(value, list) else [value]
            texts[task.name] = ", ".join("-" if math.isnan(number) else f"{number:.2f}" for number in numbers)
    return texts

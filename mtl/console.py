"""What a training run shows on the terminal: a bar, a line per log, a table per evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from configuration_mtl import TaskConfig
from inference_mtl import Text
from modeling_mtl import MTLModel
from mtl.data import label_column
from mtl.metrics import PRIMARY_METRIC
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
        names = [f"{kind}_{task.name}" for task in self.tasks for kind in ("loss", "teacher_loss")]
        parts = [f"{name.removeprefix('loss_')} {logs[name]:.4f}" for name in names if name in logs]
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


def sample_lines(model: MTLModel, texts: Sequence[Text], truths: Sequence[dict[str, str]]) -> str:
    """Formats sentences with the predicted and the true label of each task, by name.

    Args:
        model: The trained model.
        texts: The sentences, or pairs.
        truths: For each sentence, the true label of each task as text; a task that is left out has none.
    """
    lines = []
    embeddings = model.encode(list(texts))  # (N, H)
    predictions = model.predict(list(texts))
    for given, truth, embedding, predicted in zip(texts, truths, embeddings, predictions, strict=True):
        text = given if isinstance(given, str) else " / ".join(given)
        short = text if len(text) <= _WIDTH_OF_TEXT else text[: _WIDTH_OF_TEXT - 1] + "…"
        lines.append(f"  input      {short}")
        for task in filter(lambda task: task.has_head, model.config.tasks):
            true = truth.get(task.name, "-")
            lines.append(f"    {task.name:<14} predicted {shown(task, predicted[task.name])}, true {true}")
        lines.append(f"    embedding[:5]  {[round(float(value), 4) for value in embedding[:5]]}")
    return "\n".join(lines)


def shown(task: TaskConfig, prediction: Any) -> str:
    """Formats one prediction of `MTLModel.predict` as text."""
    if task.problem_type in CLASS_TYPES:
        return f"{prediction['label']} ({prediction['score']:.2f})"
    if task.problem_type == MULTI_LABEL:
        return ", ".join(prediction["labels"]) or "none"
    return f"{prediction:.2f}" if isinstance(prediction, float) else str(prediction)


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

"""Teachers: models that have been trained already, and what they say of texts, computed once.

What a teacher says of a list of texts is kept in a file of the cache of `datasets`, found again by the texts and by
the content of the teacher: its weights, its tokenizer, its limit of tokens. It becomes the columns `teacher_<task>`
of the training data, from which `mtl.distillation` takes it.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import LARGE_INTEGER

from batching_mtl import Text, position_limit, tokenize
from classification_mtl import ordinal_probabilities
from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel
from mtl.content_keys import cache_file, key_of, key_of_config, key_of_rows, key_of_tokenizer, key_of_weights
from mtl.data import row_texts
from mtl.saved_models import check_complete
from mtl.sources import PAIR_COLUMN, TEXT_COLUMN
from mtl.teacher_columns import as_teacher_column, teacher_column
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL

logger = logging.getLogger(__name__)

_CACHE_VERSION = 1  # raise it when a teacher says something else of the same texts
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained model with its own tokenizer, and the tasks of its outputs.

    Args:
        name: Folder or repository, for messages.
        model: An [`MTLModel`], or a classifier of one task with `logits` of shape (B, C).
        tokenizer: Its tokenizer.
        tasks: The tasks, with their labels in the order of the logits.
        max_length: Limit at which its texts are truncated, in tokens; None for no limit.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    tasks: tuple[TaskConfig, ...]
    max_length: int | None

    def says(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Returns, by task, class probabilities, label probabilities, or outputs of a regression, of one batch.

        Args:
            texts: The texts of the batch, or pairs of texts.

        Returns:
            Float32 on the CPU, (B, C) each.
        """
        columns = tokenize(
            self.tokenizer, texts, truncation=self.max_length is not None, max_length=self.max_length, padding=False
        )
        batch = self.tokenizer.pad(columns, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            logits: Any = self.model(**batch).logits
        by_task = logits if isinstance(logits, Mapping) else {self.tasks[0].name: logits}
        return {task.name: _probabilities(task, by_task[task.name].float()).cpu() for task in self.tasks}

    @cached_property
    def key(self) -> str:
        """Key of all that its outputs depend on but the texts."""
        weights, tokenizer = key_of_weights(self.model), key_of_tokenizer(self.tokenizer)
        config = key_of_config(self.model.config)
        tasks = [task.to_dict() for task in self.tasks]
        return key_of(_CACHE_VERSION, type(self.model).__name__, config, weights, tokenizer, self.max_length, tasks)


def load_mtl_teacher(
    name: str, *, trust_remote_code: bool = False, device: torch.device | str | None = None
) -> Teacher:
    """Loads a saved multi-task model as a teacher.

    Args:
        name: Folder, or repository on the Hub.
        trust_remote_code: Whether code in it may run.
        device: Where it runs; the CPU if not given.

    Raises:
        OSError: If there is no such folder or repository.
        ValueError: If it is not a multi-task model, its weights lack some, or it has no tokenizer.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    if config.model_type != MTLConfig.model_type:
        raise ValueError(
            f"teacher {name!r} is a {config.model_type!r}, not a saved multi-task model. To learn from classifiers of "
            "single tasks use `merge_models.py`, or write what they say into columns (`teachers` of a source)."
        )
    model, loading = MTLModel.from_pretrained(name, trust_remote_code=trust_remote_code, output_loading_info=True)
    again = ". Copy or download it again, or give another teacher."
    check_complete(f"teacher {name!r}: its weights lack", loading, again)
    model = model.to(device or "cpu").eval()
    if model.tokenizer is None:
        raise ValueError(
            f"teacher {name!r} has no tokenizer. Save one beside it: `tokenizer.save_pretrained(folder)`."
        )
    tasks = tuple(TaskConfig(**task.to_dict()) for task in model.config.tasks if task.has_head)
    return Teacher(name, model, model.tokenizer, tasks, model.max_tokens())


def load_classifier_teacher(
    task: str, name: str, *, trust_remote_code: bool = False, device: torch.device | str | None = None
) -> Teacher:
    """Loads a classifier of one task as a teacher: any that `AutoModelForSequenceClassification` loads.

    Its `problem_type` says what it predicts; where it has none, one output is a regression, several are classes.

    Args:
        task: Name that its task gets.
        name: Folder, or repository on the Hub.
        trust_remote_code: Whether code in it may run.
        device: Where it runs; the CPU if not given.

    Raises:
        OSError: If there is no such folder or repository.
        ValueError: If it has no classification head, no usable labels, or no way to pad.
    """
    hub = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name, **hub)
    if config.model_type == MTLConfig.model_type:
        raise ValueError(
            f"Teacher {task}={name}: this is a multi-task model, not a classifier of one task. Train with the setting "
            "`teacher` of `train_trainer.py` to learn from it."
        )
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **hub
        )
    except RuntimeError as error:  # Weights of other shapes, of which transformers tells the names in its log.
        raise ValueError(
            f"Teacher {task}={name}: its weights do not have the shapes of its config.json, which names "
            f"{config.num_labels} labels ({list(config.id2label.values())[:3]}). Correct `id2label` there."
        ) from error
    fix = ". It has not been trained for classification: give a fine-tuned model."
    check_complete(f"Teacher {task}={name}: its weights lack", loading, fix)
    tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    if tokenizer.pad_token_id is None:
        raise ValueError(f"Teacher {task}={name}: its tokenizer has no pad token. Set one, and save it again.")
    # Decoders read the last token that is not this one, so it has to be what batches are padded with.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    # A tokenizer that was saved without a limit has one of 1e30.
    limits = [
        limit for limit in (tokenizer.model_max_length, position_limit(config)) if limit and limit < LARGE_INTEGER
    ]
    return Teacher(
        name,
        model.to(device or "cpu").eval(),
        tokenizer,
        (_task_of_classifier(task, name, config),),
        min(limits, default=None),
    )


def _task_of_classifier(task: str, name: str, config: Any) -> TaskConfig:
    kind = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)
    if set(config.id2label) != set(range(config.num_labels)):
        raise ValueError(
            f"Teacher {task}={name}: `id2label` of its config.json names the outputs {sorted(config.id2label)}, but "
            f"they are numbered from 0 to {config.num_labels - 1}. Correct it there."
        )
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    if kind == REGRESSION and labels == [f"LABEL_{index}" for index in range(config.num_labels)]:
        return TaskConfig(task, kind, num_labels=config.num_labels)
    try:
        return TaskConfig(task, kind, labels=tuple(labels))
    except ValueError as error:
        raise ValueError(f"Teacher {task}={name}: {error}") from error


def with_teachers(
    dataset: Dataset, tasks: Sequence[TaskConfig], teachers: Sequence[Teacher], *, batch_size: int = 32
) -> Dataset:
    """Returns rows with what teachers say of their texts, as columns `teacher_<task>`.

    A task takes part if a teacher has it with the same problem type and the same labels, in any order. Where several
    have it, their probabilities (or outputs) are averaged.

    Args:
        dataset: Rows with column `text`.
        tasks: The tasks of the student.
        teachers: The teachers.
        batch_size: Texts per forward pass.

    Raises:
        ValueError: If the rows have no texts, a teacher has no task in common, or a column is there already.
    """
    if TEXT_COLUMN not in dataset.column_names:
        raise ValueError(
            f"Teachers read texts, but the rows have no column {TEXT_COLUMN!r} (found {dataset.column_names}). Keep "
            "it: `tokenize_splits(..., keep_text=True)`."
        )
    orders = [_common_tasks(tasks, teacher) for teacher in teachers]  # Told before anything is computed.
    for name in chain.from_iterable(orders):
        if teacher_column(name) in dataset.column_names:
            raise ValueError(
                f"Task {name!r} has a teacher's column in a source and a model as a teacher. Leave out "
                f"`teachers.{name}` in the source, or the task in the teacher."
            )
    said: dict[str, list[npt.NDArray[np.float32]]] = {}
    for teacher, order in zip(teachers, orders, strict=True):
        answers = ask(teacher, dataset, batch_size=batch_size)
        for name, places in order.items():
            said.setdefault(name, []).append(answers[name][:, places])  # (N, C)
    for name, answers_of_all in said.items():
        dataset = dataset.add_column(teacher_column(name), as_teacher_column(np.mean(answers_of_all, axis=0)))
    return dataset


def ask(teacher: Teacher, dataset: Dataset, *, batch_size: int = 32) -> dict[str, npt.NDArray[np.float32]]:
    """Returns what a teacher says of the texts of a data set, (N, C) by task; computed once, then read from the cache.

    Args:
        teacher: The teacher.
        dataset: Rows with column `text`, and `text_pair` where texts are pairs.
        batch_size: Texts per forward pass.
    """
    columns = [column for column in (TEXT_COLUMN, PAIR_COLUMN) if column in dataset.column_names]
    texts = dataset.select_columns(columns)
    key = key_of(teacher.key, key_of_rows(texts, columns))
    answers = texts.map(
        _ask_batch,
        batched=True,
        batch_size=_ROWS_AT_ONCE,
        remove_columns=columns,
        fn_kwargs={"teacher": teacher, "batch_size": batch_size},
        features=Features({task.name: List(Value("float32"), length=task.num_labels) for task in teacher.tasks}),
        new_fingerprint=key,
        cache_file_name=cache_file("teacher", key),
        desc=f"Asking {teacher.name}",
    )
    return {task.name: np.asarray(answers.with_format("numpy")[:][task.name], np.float32) for task in teacher.tasks}


def _ask_batch(
    batch: Mapping[str, list[Any]], *, teacher: Teacher, batch_size: int
) -> dict[str, npt.NDArray[np.float32]]:
    texts = row_texts(batch)
    said = {task.name: np.empty((len(texts), task.num_labels or 1), np.float32) for task in teacher.tasks}
    # By length, so that batches hold little padding.
    order = sorted(range(len(texts)), key=lambda row: len("".join(texts[row])), reverse=True)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for name, values in teacher.says([texts[row] for row in rows]).items():
            said[name][rows] = values.numpy()
    return said


def completed_tasks(
    tasks: Sequence[TaskConfig], teachers: Sequence[Teacher], labelled: Collection[str]
) -> tuple[TaskConfig, ...]:
    """Returns the tasks, with the labels of a teacher of the same kind where neither configuration nor data names any.

    Args:
        tasks: The tasks as configured.
        teachers: The teachers.
        labelled: Names of the tasks that the data has labels of.
    """
    known = {task.name: task for teacher in reversed(teachers) for task in teacher.tasks}
    completed = []
    for task in tasks:
        taught = known.get(task.name)
        is_open = task.labels is None and task.name not in labelled
        if taught is not None and is_open and _may_be(task, taught):
            task = replace(task, labels=taught.labels, num_labels=taught.num_labels)
        completed.append(task)
    return tuple(completed)


def _may_be(task: TaskConfig, taught: TaskConfig) -> bool:
    return task.problem_type == taught.problem_type and task.num_labels in (None, taught.num_labels)


def taught_tasks(tasks: Sequence[TaskConfig], teachers: Sequence[Teacher]) -> set[str]:
    """Returns the names of the tasks that a teacher has with the same labels."""
    return {
        task.name
        for task in tasks
        for teacher in teachers
        for other in teacher.tasks
        if task.name == other.name and label_order(task, other) is not None
    }


def _common_tasks(tasks: Sequence[TaskConfig], teacher: Teacher) -> dict[str, list[int]]:
    """Returns, for each task that student and teacher share, the place of each of its labels at the teacher."""
    known = {task.name: task for task in teacher.tasks}
    common, reasons = {}, []
    for task in tasks:
        order = None if task.name not in known else label_order(task, known[task.name])
        if order is not None:
            common[task.name] = order
        elif task.name in known:
            reasons.append(f"{task.name!r} has other labels there, or another problem type")
    found = f"teacher {teacher.name!r}: its tasks are {list(known)}, those to learn {[task.name for task in tasks]}"
    if not common:
        because = f" ({'; '.join(reasons)})" if reasons else ""
        raise ValueError(f"{found}, and none is the same{because}. Give another teacher, or name tasks alike.")
    if reasons:
        logger.warning("%s; %s: not learned from it.", found, "; ".join(reasons))
    return common


def label_order(task: TaskConfig, other: TaskConfig) -> list[int] | None:
    """Returns the place in another task of each label of a task; None if they do not predict the same."""
    if task.problem_type != other.problem_type or task.num_labels != other.num_labels:
        return None
    if task.problem_type == REGRESSION and task.num_labels == 1:
        return [0]
    if set(task.label2id) != set(other.label2id):
        return None
    return [other.label2id[label] for label in task.id2label.values()]


def _probabilities(task: TaskConfig, logits: Tensor) -> Tensor:
    if task.problem_type == REGRESSION:
        return logits
    if task.problem_type == ORDINAL:
        return ordinal_probabilities(logits)  # (B, C)
    return logits.sigmoid() if task.problem_type == MULTI_LABEL else logits.softmax(dim=-1)  # (B, C)

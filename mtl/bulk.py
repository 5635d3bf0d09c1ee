"""Predictions and embeddings for files of any size: read in blocks, one pass a block, written part by part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batching_mtl import Text
from configuration_mtl import TaskConfig
from mtl.bulk_columns import OutputColumn, check_names, output_table, prediction_columns
from mtl.bulk_inputs import READERS, InputColumns, check_contents, check_inputs, read_blocks, suffix_of
from mtl.bulk_store import PartStore, only_writer
from mtl.published_files import sha256

PART_ROWS = 16_384
"""Rows of a part: what a kill loses at most, and what is held at once."""

Answer = tuple[npt.NDArray[np.float32] | None, list[dict[str, Any]] | None]
"""Embeddings, (M, H), and predictions of M texts; None for what is not wanted."""


class BulkModel(Protocol):
    """What answers texts."""

    @property
    def tasks(self) -> Sequence[TaskConfig]:
        """The tasks that it predicts."""

    @property
    def fingerprint(self) -> str:
        """Key of all that its answers depend on."""

    def answer(self, texts: Sequence[Text], *, embeddings: bool, predictions: bool) -> Answer:
        """Returns what is wanted of texts, from one pass."""


@dataclass(frozen=True)
class BulkJob:
    """What is read, answered and written.

    Args:
        inputs: The files, one after another.
        output: The Parquet file that is written, or the folder of its parts.
        columns: Which columns are read.
        predictions: Whether tasks have columns.
        embeddings: Whether embeddings have a column.
        tasks: Names of the tasks that have columns; all of the model if not given.
        probabilities: Whether probabilities have columns.
        prefix: What stands before the names of columns of predictions.
        part_rows: Rows of a part.
        parts: Whether the output stays a folder of parts.
        strict: Whether a row without a text is refused.
        overwrite: Whether an output of something else is replaced.
    """

    inputs: tuple[Path, ...]
    output: Path
    columns: InputColumns
    predictions: bool = True
    embeddings: bool = False
    tasks: tuple[str, ...] | None = None
    probabilities: bool = False
    prefix: str = ""
    part_rows: int = PART_ROWS
    parts: bool = False
    strict: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked without a file."""
        if not self.parts and suffix_of(self.output) in READERS.keys() - {".parquet"}:
            wanted = self.output.with_suffix(".parquet")
            raise ValueError(f"The output is Parquet, but {self.output} is called otherwise. Call it {wanted.name!r}.")
        if self.part_rows < 1:
            raise ValueError(f"part_rows must be at least 1, found {self.part_rows}.")
        if not self.predictions and not self.embeddings:
            raise ValueError("Neither predictions nor embeddings are wanted. Ask for one of them.")


@dataclass
class BulkResult:
    """What was written.

    Args:
        output: The file or folder.
        rows: Rows that were answered by this call.
        rows_before: Rows that were there before.
        without_text: Rows of this call without a text, which have nulls.
    """

    output: Path
    rows: int = 0
    rows_before: int = 0
    without_text: int = 0


@dataclass(frozen=True)
class Answerer:
    """Makes the output of a block of rows; may be sent to another process together with its model.

    Args:
        model: The model.
        job: What is wanted.
        outputs: The columns of predictions.
    """

    model: BulkModel
    job: BulkJob
    outputs: list[OutputColumn]

    @classmethod
    def of(cls, model: BulkModel, job: BulkJob) -> "Answerer":
        """Returns that of a model and a job.

        Raises:
            ValueError: If a task is unknown, or two columns would have one name.
        """
        outputs = prediction_columns(_wanted(model.tasks, job), prefix=job.prefix, probabilities=job.probabilities)
        outputs = outputs if job.predictions else []
        if job.predictions and not outputs:
            raise ValueError("The model has no task with a head, so there is nothing to predict. Use `mtl encode`.")
        check_names(job.columns.kept, outputs, job.embeddings)
        return cls(model, job, outputs)

    def __call__(self, block: pa.Table, first_row: int) -> tuple[pa.Table, int]:
        """Returns the output of a block, and how many of its rows have no text.

        Args:
            block: Its rows.
            first_row: Number of its first row, for a message.

        Raises:
            ValueError: If a row has no text, and the job is strict.
        """
        texts, is_text = _texts(block, self.job.columns)
        if self.job.strict and len(texts) < len(is_text):
            row = first_row + is_text.index(False)
            raise ValueError(
                f"Row {row} (of all files, counted from 0) has no text in {self.job.columns.texts}. Drop it, or leave "
                "out --strict: the row then has nulls."
            )
        answer: Answer = (None, None)
        if texts or self.job.embeddings:  # Of no text the model still knows how wide its embedding is.
            answer = self.model.answer(texts, embeddings=self.job.embeddings, predictions=self.job.predictions)
        embeddings, predictions = answer
        predictions = (predictions or []) if self.job.predictions else None
        kept = block.select(list(self.job.columns.kept))
        return output_table(kept, is_text, self.outputs, predictions, embeddings), len(is_text) - len(texts)


def run_bulk(model: BulkModel, job: BulkJob, *, progress: Callable[[int], Any] = lambda rows: None) -> BulkResult:
    """Answers all rows of a job that are not there yet, and writes the output.

    Args:
        model: The model.
        job: The job.
        progress: Called with a count of rows as they are done.

    Raises:
        FileExistsError: If the output is there of something else, or another process is writing it.
        FileNotFoundError: If an input is not there.
        ValueError: If an input cannot be read, or the job does not fit the model or the files.
    """
    with only_writer(job.output):
        answerer, store, result = begin_bulk(model, job)
        if store is None:
            return result
        progress(result.rows_before)
        for number, block in pending_blocks(job, store):
            table, without_text = answerer(block, number * job.part_rows)
            store.write(number, table)
            result.rows += block.num_rows
            result.without_text += without_text
            progress(block.num_rows)
        return finish_bulk(store, result)


def begin_bulk(model: BulkModel, job: BulkJob) -> tuple[Answerer, PartStore | None, BulkResult]:
    """Checks all that can be checked before any work; returns what goes on, with no store if all is done."""
    check_inputs(job.inputs, job.columns)
    answerer = Answerer.of(model, job)
    store = PartStore(job.output, _run_of(model, job), is_folder=job.parts)
    result = BulkResult(job.output)
    _check_apart(job, store)
    if store.begin(overwrite=job.overwrite):
        return answerer, None, result
    if not store.done():  # Otherwise an earlier call has read these very files.
        check_contents(job.inputs, job.columns)
    result.rows_before = store.count_rows()
    return answerer, store, result


def pending_blocks(job: BulkJob, store: PartStore) -> Iterator[tuple[int, pa.Table]]:
    """Yields number and rows of each part that is not there yet."""
    done = store.done()
    skipped = next(number for number in range(len(done) + 1) if number not in done)
    blocks = read_blocks(job.inputs, job.columns, job.part_rows, skip=skipped * job.part_rows)
    for number, block in enumerate(blocks, start=skipped):
        if number not in done:
            yield number, block


def finish_bulk(store: PartStore, result: BulkResult) -> BulkResult:
    """Puts the output together."""
    if not store.done():
        raise ValueError("The input has no rows, so there is no output. Check the files.")
    store.finish()
    return result


def _check_apart(job: BulkJob, store: PartStore) -> None:
    """Refuses to write over what is read."""
    written = {job.output.resolve(), store.folder.resolve()}
    for path in job.inputs:
        if written & {path.resolve(), path.resolve().parent}:
            raise ValueError(f"The input {path} is where the output goes, {job.output}. Give another --output.")


def _wanted(tasks: Sequence[TaskConfig], job: BulkJob) -> list[TaskConfig]:
    names = [task.name for task in tasks]
    if unknown := [name for name in job.tasks or () if name not in names]:
        raise ValueError(f"The model has no task {unknown[0]!r}, found {names}. Name some of these in --tasks.")
    return [task for task in tasks if job.tasks is None or task.name in job.tasks]


def _texts(block: pa.Table, columns: InputColumns) -> tuple[list[Text], list[bool]]:
    """Returns the texts or pairs of the rows that have them, and whether each row has."""
    cells = [block[name].to_pylist() for name in columns.texts]
    rows = list(zip(*cells, strict=True))
    is_text = [all(cell is not None for cell in row) for row in rows]
    there = [row for row, has in zip(rows, is_text, strict=True) if has]
    return [row if columns.pair is not None else row[0] for row in there], is_text


def _run_of(model: BulkModel, job: BulkJob) -> dict[str, Any]:
    """Returns all that the output depends on, under names that a message can show."""
    return {
        # Of all bytes: a row that was mended in its middle leaves size and ends as they were.
        "input": [[path.name, sha256(path)] for path in job.inputs],
        "model": model.fingerprint,
        "columns": {"texts": job.columns.texts, "kept": list(job.columns.kept)},
        "tasks": None if job.tasks is None else list(job.tasks),
        "predictions": job.predictions,
        "embeddings": job.embeddings,
        "probabilities": job.probabilities,
        "prefix": job.prefix,
        "part_rows": job.part_rows,
    }

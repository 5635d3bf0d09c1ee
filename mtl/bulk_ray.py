"""A bulk run on the workers of Ray: this process reads and writes, they answer.

Blocks go through Ray Data as rows of one block each, so that no operator cuts or joins them: the parts that are
written are those of a run without Ray, and a run can be gone on with either way. The input is read by a task of its
own, as fast as the workers take it; on a cluster its files must be where every node can read them.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from mtl.bulk import Answerer, BulkJob, BulkModel, BulkResult, begin_bulk, finish_bulk, pending_blocks
from mtl.bulk_models import BulkOptions, TorchBulkModel
from mtl.bulk_store import PartStore, only_writer
from mtl.extras import require

_OBJECT_STORE_BYTES = 256 << 20
"""Shared memory of a Ray that is started here: blocks are small, and containers have little."""


def run_bulk_on_ray(
    model: BulkModel,
    job: BulkJob,
    options: BulkOptions,
    *,
    workers: int,
    progress: Callable[[int], Any] = lambda rows: None,
) -> BulkResult:
    """Answers all rows of a job that are not there yet, with several workers, and writes the output.

    Args:
        model: The model, which is asked here for its tasks only.
        job: The job.
        options: What each worker loads.
        workers: Count of workers, each with a model of its own.
        progress: Called with a count of rows as they are done.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If `workers` is less than 1; and as [`mtl.bulk.run_bulk`].
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}.")
    ray = require("ray", extra="ray", what="--engine ray")
    with only_writer(job.output):
        _, store, result = begin_bulk(model, job)
        if store is None:
            return result
        # Ray reports its use to its makers unless told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        started_here = not ray.is_initialized()
        if started_here:
            _start(ray)
        progress(result.rows_before)
        try:
            _answer_all(ray, job, options, store, result, workers, progress)
        finally:
            if started_here:
                ray.shutdown()
        return finish_bulk(store, result)


def _start(ray: Any) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):  # A cluster that is there.
        ray.init(**quiet)
    else:
        ray.init(
            include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, _node_ip_address="127.0.0.1", **quiet
        )


def _answer_all(
    ray: Any,
    job: BulkJob,
    options: BulkOptions,
    store: PartStore,
    result: BulkResult,
    workers: int,
    progress: Callable[[int], Any],
) -> None:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # A row is a piece of its own: Ray would join them, and give all to one worker.
    with ray.data.DataContext.current(context):
        answers = _answers(ray, job, options, store, workers)
    for answer in answers.iter_rows():
        store.write(answer["number"], _table(answer["table"]))
        result.rows += answer["rows"]
        result.without_text += answer["without_text"]
        progress(answer["rows"])


def _answers(ray: Any, job: BulkJob, options: BulkOptions, store: PartStore, workers: int) -> Any:
    source = ray.data.read_datasource(
        _block_source(ray, job, store),
        override_num_blocks=1,
        num_cpus=0,  # The workers may have all cores, and wait for what it reads.
    )
    return source.map_batches(
        _Worker,
        fn_constructor_args=(options, job),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=cores_each(ray.cluster_resources().get("CPU", 1.0), workers),
        compute=ray.data.ActorPoolStrategy(size=workers),
    )


def cores_each(cores: float, workers: int) -> float:
    """Returns how many cores each worker is given, all together no more than there are; below one core, a share."""
    return float(cores // workers) if cores >= workers else int(100 * cores / workers) / 100


class _Worker:
    """Holds a model and answers blocks."""

    def __init__(self, options: BulkOptions, job: BulkJob) -> None:
        self._job = job
        self._answer = Answerer.of(TorchBulkModel(options), job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers a batch of one row, which is a block."""
        (row,) = batch.to_pylist()
        block = _table(row["table"])
        table, without_text = self._answer(block, row["number"] * self._job.part_rows)
        counts = {"rows": [block.num_rows], "without_text": [without_text]}
        return pa.table({"number": [row["number"]], "table": [_bytes(table)], **counts})


def _block_source(ray: Any, job: BulkJob, store: PartStore) -> Any:
    """Returns a source for Ray Data of the blocks that are not answered yet."""
    datasource = require("ray.data.datasource", extra="ray", what="--engine ray")
    base: Any = datasource.Datasource  # Ray is optional, and known only now.
    block_module = require("ray.data.block", extra="ray", what="--engine ray")

    def read() -> Iterator[pa.Table]:
        for number, block in pending_blocks(job, store):
            yield pa.table({"number": [number], "table": [_bytes(block)]})

    class BlockSource(base):
        """The blocks of a job."""

        def estimate_inmemory_data_size(self) -> int | None:
            """Nothing is known before it is read."""
            return None

        def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, **kwargs: Any) -> list[Any]:
            """One task, which reads the files from the first to the last."""
            metadata = block_module.BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [datasource.ReadTask(read, metadata)]

    return BlockSource()


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _table(content: bytes) -> pa.Table:
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()

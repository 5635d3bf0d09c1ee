"""Answers of an exported model without torch: one file, which is copied beside the graphs and needs no other.

    from predictor_mtl import MTLPredictor

    predictor = MTLPredictor("outputs/vader")
    embeddings, predictions = predictor.encode_and_predict(["What a wonderful film!"])

It needs numpy and tokenizers, and onnxruntime, openvino or, for a static student, safetensors. Its methods are those
of `MTLModel`, with the same answers.
"""

import collections
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

MANIFEST = "mtl_inference.json"
"""File of a folder that says what its graphs take and give."""
FORMAT_VERSION = 1
EMBEDDING, LOGITS = "sentence_embedding", "logits_"
"""Name of the output with the embeddings, and what stands before a task's name in that of its logits."""
BACKENDS = ("static", "openvino", "onnx")
"""In the order in which they are preferred."""
PACKAGES = {"static": "safetensors", "openvino": "openvino", "onnx": "onnxruntime"}
"""Backend -> the package that it needs."""
PRECISIONS = ("fp32", "bf16", "int8")

Text = str | tuple[str, str]
Predictions = list[dict[str, Any]]
Arrays = dict[str, np.ndarray]

_WINDOW_SIZE = 8192
_PIECE = 256


class MTLPredictor:
    """Embeddings and predictions of an exported model.

    Args:
        folder: Folder of the export.
        backend: `"onnx"`, `"openvino"`, `"static"`, or `"auto"`: what is exported and installed, OpenVINO before ONNX
            Runtime. A static student pads nothing, so sizes of batches mean nothing to it.
        precision: `"fp32"`; `"int8"`; `"bf16"`, of OpenVINO, where the processor has it; or `"auto"`: int8 where it
            was exported and by what the export measured loses nothing worth telling, else fp32.
        threads: Threads in all; as many as there are cores if not given.
        cache_dir: Folder where OpenVINO keeps what it compiles of a graph, so that later starts are fast; nothing is
            kept if not given. It is run as it is found: give a folder that nobody else writes to.

    Raises:
        FileNotFoundError: If the folder has no export, or not that one.
        ImportError: If the backend is not installed.
        OSError: If there is no cache_dir and none can be made.
        ValueError: If backend or precision is unknown, threads is less than 1, or the export is of a later version.

    One of OpenVINO is of the process that made it: in a fork of that its methods raise RuntimeError.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if threads is not None:  # 0 and less mean all cores to a runtime, or nothing.
            _check_counts({"threads": threads})
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.graph = _chosen_graph(self.manifest["graphs"], backend, precision)
        self.tasks: list[dict[str, Any]] = self.manifest["tasks"]
        self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self.manifest["max_tokens"] is not None:
            side = self.manifest["truncation_side"]
            self._tokenizer.enable_truncation(self.manifest["max_tokens"], direction=side)
        file = self.folder / self.graph["file"]
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {str(file)!r}, of which {MANIFEST} tells. Export again.")
        options = _Options(self.graph["precision"], threads, None if cache_dir is None else Path(cache_dir))
        self._runtime = _RUNTIMES[self.graph["backend"]](file, options, self.manifest)

    def encode(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
    ) -> np.ndarray:
        """Returns the embeddings of sentences, in their order.

        Args:
            sentences: One sentence, or several; in a list a tuple of two strings is a pair that is read together.
            batch_size: Sentences of a batch at most.
            max_batch_tokens: Tokens of a batch, with padding, at most.

        Returns:
            Float32 embeddings. Shape (H,) for one sentence, (N, H) for several.

        Raises:
            TypeError: If a sentence is neither a string nor a pair of them.
            ValueError: If a count is less than 1.
        """
        found = [embeddings for embeddings, _ in self._answers(sentences, batch_size, max_batch_tokens, [])]
        embeddings = np.concatenate([np.empty((0, self.manifest["hidden_size"]), np.float32), *found])  # (N, H)
        return embeddings[0] if isinstance(sentences, str) else embeddings

    def predict(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
    ) -> Any:
        """Predicts every task for sentences; arguments and errors as of [`encode`], the answers as of `MTLModel`.

        Returns:
            A dict by task for each sentence; for one sentence, that dict.
        """
        found = self._answers(sentences, batch_size, max_batch_tokens, self.tasks)
        predictions = [said for _, some in found for said in some]
        return predictions[0] if isinstance(sentences, str) else predictions

    def encode_and_predict(
        self, sentences: Iterable[Text], *, batch_size: int | None = None, max_batch_tokens: int | None = None
    ) -> tuple[np.ndarray, Predictions]:
        """Returns what [`encode`] and [`predict`] give for several sentences, from one pass."""
        _refuse_string(sentences, "encode_and_predict")
        found = list(self._answers(sentences, batch_size, max_batch_tokens, self.tasks))
        embeddings = [np.empty((0, self.manifest["hidden_size"]), np.float32), *(some for some, _ in found)]
        return np.concatenate(embeddings), [said for _, some in found for said in some]  # (N, H)

    def stream(
        self,
        sentences: Iterable[Text],
        *,
        batch_size: int | None = None,
        max_batch_tokens: int | None = None,
        window_size: int = 1024,
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Returns an iterator over embedding, (H,), and predictions of each sentence, in order, with flat memory."""
        _refuse_string(sentences, "stream")
        answers = self._answers(sentences, batch_size, max_batch_tokens, self.tasks, window_size)
        # Not a `yield`, so that what is wrong with the arguments is told here and not at the first answer.
        return (pair for embeddings, some in answers for pair in zip(embeddings, some, strict=True))

    def outputs(self, sentences: Sequence[Text]) -> Arrays:
        """Returns the outputs of the graph for sentences in one batch, as they are.

        Returns:
            `sentence_embedding`, (B, H), and `logits_<task>`, (B, C), divided by the task's temperature.
        """
        if isinstance(self._runtime, _Static):
            return self._runtime.outputs(self._token_ids(sentences))
        ((_, outputs),) = self._runtime.run(iter([(np.arange(len(sentences)), self.inputs(sentences))]))
        return outputs

    def inputs(self, sentences: Sequence[Text]) -> Arrays:
        """Returns the inputs of the graph, (B, T) each, for sentences in one batch."""
        encoded = self._tokenizer.encode_batch(list(sentences))
        return self._padded(encoded, max([1, *(len(one.ids) for one in encoded)]))

    def passes(
        self, sentences: Sequence[Text], *, batch_size: int | None = None, max_batch_tokens: int | None = None
    ) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Yields numbers of sentences, (B,), and the outputs of the graph for them, as of [`outputs`]."""
        if isinstance(self._runtime, _Static):  # Which pads nothing, and so needs no batches.
            return iter([(np.arange(len(sentences)), self._runtime.outputs(self._token_ids(sentences)))])
        budget = self._runtime.batch_tokens if max_batch_tokens is None else max_batch_tokens
        return self._runtime.run(self._batches(sentences, batch_size, budget))

    def _answers(
        self,
        sentences: str | Iterable[Text],
        batch_size: int | None,
        max_batch_tokens: int | None,
        tasks: Sequence[Mapping[str, Any]],
        window_size: int = _WINDOW_SIZE,
    ) -> Iterator[tuple[np.ndarray, Predictions]]:
        """Returns an iterator over embeddings, (W, H), and predictions of the tasks, window by window."""
        budget = self._runtime.batch_tokens if max_batch_tokens is None else max_batch_tokens
        _check_counts({"max_batch_tokens": budget, "window_size": window_size})
        if batch_size is not None:
            _check_counts({"batch_size": batch_size})
        return self._answered(_windows(sentences, window_size), batch_size, budget, tasks)

    def _answered(
        self, windows: Iterator[list[Text]], batch_size: int | None, budget: int, tasks: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[np.ndarray, Predictions]]:
        for texts in windows:
            embeddings = np.empty((len(texts), self.manifest["hidden_size"]), np.float32)  # (W, H)
            predictions: Predictions = [{} for _ in texts]
            for rows, outputs in self.passes(texts, batch_size=batch_size, max_batch_tokens=budget):
                embeddings[rows] = outputs[EMBEDDING]
                by_task = {task["name"]: predictions_of(task, outputs[LOGITS + task["name"]]) for task in tasks}
                for place, row in enumerate(rows.tolist()):
                    predictions[row] = {name: said[place] for name, said in by_task.items()}
            yield embeddings, predictions

    def _batches(
        self, texts: Sequence[Text], batch_size: int | None, budget: int
    ) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Yields, longest batch first, the numbers of its texts, (B,), and the inputs of the graph, (B, T) each."""
        encoded = self._tokenizer.encode_batch(list(texts))
        lengths = np.array([len(one.ids) for one in encoded])  # (W,)
        order = np.argsort(-lengths, kind="stable")  # (W,)
        begin = 0
        while begin < len(order):
            width = max(1, int(lengths[order[begin]]))
            size = max(1, budget // width)
            rows = order[begin : begin + (size if batch_size is None else min(size, batch_size))]  # (B,)
            begin += len(rows)
            yield rows, self._padded([encoded[row] for row in rows], width)

    def _token_ids(self, sentences: Sequence[Text]) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode_batch_fast(list(sentences))]

    def _padded(self, encoded: Sequence[Any], width: int) -> Arrays:
        fillers = {"input_ids": self.manifest["pad_token_id"], "attention_mask": 0}
        fillers["token_type_ids"] = self.manifest["pad_token_type_id"]
        on_left = self.manifest["padding_side"] == "left"
        inputs: Arrays = {}
        for name in self.manifest["inputs"]:
            inputs[name] = np.full((len(encoded), width), fillers[name], np.int64)  # (B, T)
            for row, one in zip(inputs[name], encoded, strict=True):
                values = getattr(one, _ATTRIBUTES[name])
                row[width - len(values) if on_left else 0 :][: len(values)] = values
        return inputs


_ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what a folder says of its graphs.

    Raises:
        FileNotFoundError: If it has no export.
        ValueError: If the export is of a later version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"There is no export in {str(folder)!r}, no {MANIFEST}. Make one: `mtl export`.")
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if manifest["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{file} is of version {manifest['format_version']}, and this predictor knows {FORMAT_VERSION} at most. "
            "Use the predictor_mtl.py beside it."
        )
    return manifest


def _chosen_graph(graphs: Sequence[dict[str, Any]], backend: str, precision: str) -> dict[str, Any]:
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, found {backend!r}.")
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision must be one of {('auto', *PRECISIONS)}, found {precision!r}.")
    there = [graph for graph in graphs if backend in ("auto", graph["backend"])]
    there += [{**graph, "precision": "bf16"} for graph in there if (graph["backend"], graph["precision"]) == _BF16_OF]
    fits = [graph for graph in there if _fits(graph, precision)]
    if not fits:
        found = sorted({f"{graph['backend']} {graph['precision']}" for graph in graphs})
        wanted = " ".join(word for word in (backend, precision) if word != "auto") or "fp32"
        raise FileNotFoundError(f"There is no graph of {wanted} here, found {found}. Take one of these.")
    if backend == "auto":
        fits = [graph for graph in fits if importlib.util.find_spec(PACKAGES[graph["backend"]])] or fits
    fits.sort(key=lambda graph: (graph["precision"] != "int8", BACKENDS.index(graph["backend"])))
    return fits[0]


_BF16_OF = ("openvino", "fp32")


def _fits(graph: Mapping[str, Any], precision: str) -> bool:
    if precision != "auto":
        return bool(graph["precision"] == precision)
    return graph["precision"] == "fp32" or (graph["precision"] == "int8" and graph.get("is_close", False))


class _Options(NamedTuple):
    """How a graph is run."""

    precision: str
    threads: int | None
    cache_dir: Path | None


class _OnnxRuntime:
    """Runs a graph in ONNX Runtime: one batch on all threads, and of several a batch on each thread at a time."""

    batch_tokens = 512

    def __init__(self, file: Path, options: _Options, manifest: Mapping[str, Any]) -> None:
        self._file = file.absolute()  # It is read a second time, perhaps from another working directory.
        self._stamp = _stamp(file)
        self._threads = options.threads or _cores()
        self._alone = self._opened(self._threads)
        self._side_by_side = self._alone if self._threads == 1 else None  # Opened where there are several batches.
        self._names = [output.name for output in self._alone.get_outputs()]

    def run(self, batches: Iterator[tuple[np.ndarray, Arrays]]) -> Iterator[tuple[np.ndarray, Arrays]]:
        begin = list(itertools.islice(batches, 2))
        if len(begin) < 2:
            for rows, inputs in begin:
                yield rows, self._named(self._alone.run(None, inputs))
            return
        session = self._side_by_side = self._side_by_side or self._second()
        running: collections.deque[tuple[np.ndarray, Callable[[], Any]]] = collections.deque()
        with contextlib.ExitStack() as stack:
            pool: Any = None
            for rows, inputs in itertools.chain(begin, batches):
                if len(running) == self._threads:
                    yield self._finished(*running.popleft())
                try:
                    pool = pool or stack.enter_context(futures.ThreadPoolExecutor(self._threads))
                    running.append((rows, pool.submit(session.run, None, inputs).result))
                except RuntimeError:  # The main thread has ended, and no pool starts after that; the caller goes on.
                    running.append((rows, functools.partial(self._alone.run, None, inputs)))
            while running:
                yield self._finished(*running.popleft())

    def _second(self) -> Any:
        """Returns a session of one thread; the first one, if the file went or was replaced since that was opened."""
        if _stamp(self._file) != self._stamp:
            return self._alone
        session = self._opened(1)
        return session if _stamp(self._file) == self._stamp else self._alone

    def _opened(self, threads: int) -> Any:
        onnxruntime = _import("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])

    def _finished(self, rows: np.ndarray, answer: Callable[[], Any]) -> tuple[np.ndarray, Arrays]:
        return rows, self._named(answer())

    def _named(self, outputs: Sequence[np.ndarray]) -> Arrays:
        return dict(zip(self._names, outputs, strict=True))


class _OpenVINO:
    """Runs a graph in OpenVINO, a batch on each thread at a time."""

    batch_tokens = 512

    def __init__(self, file: Path, options: _Options, manifest: Mapping[str, Any]) -> None:
        openvino = _import("openvino", "openvino")
        core = openvino.Core()
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
        # On its own it would take bf16 where the processor has it.
        hints["INFERENCE_PRECISION_HINT"] = "bf16" if options.precision == "bf16" else "f32"
        if options.threads is not None:
            hints["INFERENCE_NUM_THREADS"] = options.threads
        if options.cache_dir is not None:
            hints["CACHE_DIR"] = str(_cache_of(file, options.cache_dir, manifest))
        self._compiled = core.compile_model(str(file), "CPU", hints)
        self._process = os.getpid()
        self._names = [output.get_any_name() for output in self._compiled.outputs]
        self._at_once = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle: collections.deque[Any] = collections.deque()

    def run(self, batches: Iterator[tuple[np.ndarray, Arrays]]) -> Iterator[tuple[np.ndarray, Arrays]]:
        if self._process != os.getpid():  # It would wait forever for threads that only the other process has.
            raise RuntimeError(
                "This predictor was made before the process was forked, and OpenVINO's threads are not taken along. "
                "Make the predictor in the new process, or start processes by `spawn`."
            )
        # Not by an AsyncInferQueue, whose threads may outlive it by so little that the process aborts (2026.4).
        running: collections.deque[tuple[Any, np.ndarray]] = collections.deque()
        try:
            for rows, inputs in batches:
                if len(running) == self._at_once:
                    yield self._finished(*running.popleft())
                request = self._request()
                running.append((request, rows))
                request.start_async(inputs)
            while running:
                yield self._finished(*running.popleft())
        finally:
            for request, _ in running:  # Nobody wants the rest.
                request.wait()

    def _request(self) -> Any:
        try:
            return self._idle.pop()  # In one step, for several threads.
        except IndexError:
            return self._compiled.create_infer_request()

    def _finished(self, request: Any, rows: np.ndarray) -> tuple[np.ndarray, Arrays]:
        request.wait()
        outputs = {name: request.get_output_tensor(place).data.copy() for place, name in enumerate(self._names)}
        self._idle.append(request)
        return rows, outputs


def _cache_of(file: Path, folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Returns the folder, made if need be, of what is compiled of a graph, another one for other weights.

    OpenVINO knows a graph by path, size and time of its .xml, in seconds. The weights are in another file, and where
    times are fixed, as in layers of containers, all three may stay as they are when a model is replaced.

    Raises:
        OSError: If it cannot be made.
    """
    graphs = [graph for graph in manifest["graphs"] if Path(graph["file"]).name == file.name]
    content = json.dumps([manifest["weights"], graphs], sort_keys=True)
    place = folder / hashlib.sha256(content.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    return place


class _Static:
    """Means of the vectors of tokens, and heads on them."""

    batch_tokens = 8_192

    def __init__(self, file: Path, options: _Options, manifest: Mapping[str, Any]) -> None:
        load_file = _import("safetensors.numpy", "static").load_file
        (graph,) = (graph for graph in manifest["graphs"] if graph["backend"] == "static")
        self._vectors = load_file(file)["embeddings"]  # (V, H)
        self._heads = load_file(file.parent / graph["heads"])
        self._tasks = [(task["name"], task["calibration_temperature"] or 1.0) for task in manifest["tasks"]]
        self._normalizes, self._for_heads = manifest["is_normalized"], graph["normalizes_for_heads"]
        self._of_cosines = frozenset(graph["cosine_tasks"])

    def outputs(self, token_ids: Sequence[list[int]]) -> Arrays:
        """Returns the outputs for the tokens of sentences, as of a graph."""
        pooled = self._pooled(token_ids)  # (B, H)
        unit = _unit(pooled)  # (B, H)
        outputs = {EMBEDDING: unit if self._normalizes else pooled}
        features = unit if self._for_heads else pooled  # (B, H)
        # So many at a time that what is between two layers stays in a processor's cache.
        pieces = np.split(features, range(_PIECE, len(features), _PIECE))
        for name, temperature in self._tasks:
            logits = np.concatenate([self._logits(name, piece) for piece in pieces])  # (B, C)
            outputs[LOGITS + name] = logits / np.float32(temperature)
        return outputs

    def _pooled(self, token_ids: Sequence[list[int]]) -> np.ndarray:
        """Returns the mean vector of each sentence, (B, H), of which those of one length are read together."""
        lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids))  # (B,)
        flat = np.fromiter(itertools.chain.from_iterable(token_ids), np.int64, int(lengths.sum()))  # (S,)
        begins = np.cumsum(lengths) - lengths  # (B,)
        pooled = np.zeros((len(token_ids), self._vectors.shape[1]), np.float32)  # (B, H)
        for length in np.unique(lengths[lengths > 0]).tolist():
            rows, places = np.flatnonzero(lengths == length), np.arange(length)  # (N,), (T,)
            size = max(1, self.batch_tokens // length)
            for some in np.split(rows, range(size, len(rows), size)):
                pooled[some] = self._vectors[flat[begins[some, None] + places]].mean(axis=1)  # (N, T, H) -> (N, H)
        return pooled

    def _logits(self, name: str, features: np.ndarray) -> np.ndarray:
        if f"{name}.hidden.weight" in self._heads:
            features = _gelu(features @ self._heads[f"{name}.hidden.weight"].T + self._heads[f"{name}.hidden.bias"])
        if name in self._of_cosines:
            features = _unit(features)
        return features @ self._heads[f"{name}.weight"].T + self._heads[f"{name}.bias"]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


_RUNTIMES: dict[str, Callable[..., Any]] = {"onnx": _OnnxRuntime, "openvino": _OpenVINO, "static": _Static}


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Returns by what a file is told from one that replaced it; None if it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _cores() -> int:
    # Of those that the process may use, where the system tells.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"This graph needs {package}: `pip install {package}` (the extra `{extra}`).") from error


def _check_counts(counts: Mapping[str, Any]) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be an int of at least 1, found {count!r}.")


def _refuse_string(sentences: Any, method: str) -> None:
    if isinstance(sentences, str):
        raise TypeError(
            f"`{method}` takes several sentences, found the string {sentences[:100]!r}. Give a list of it."
        )


def _windows(sentences: str | Iterable[Text], size: int) -> Iterator[list[Text]]:
    # Iterating over a mapping or a table would give its keys or columns, which are strings too.
    # A numpy string is a string, but has no dimension.
    is_flat = isinstance(sentences, str) or getattr(sentences, "ndim", 1) == 1
    if not isinstance(sentences, Iterable) or isinstance(sentences, Mapping) or not is_flat:
        raise TypeError(
            f"sentences is of type {type(sentences).__name__}; expected a string or a list of strings, such as the "
            f"column of the texts. Found {str(sentences)[:100]!r}."
        )
    texts = [sentences] if isinstance(sentences, str) else sentences
    if isinstance(texts, Sized):
        _check(texts, 0)  # Else a fault at the end would come after hours of work.
        return _cut(iter(texts), size, is_checked=True)
    return _cut(iter(texts), size, is_checked=False)


def _cut(texts: Iterator[Text], size: int, *, is_checked: bool) -> Iterator[list[Text]]:
    begin = 0
    while window := list(itertools.islice(texts, size)):
        if not is_checked:
            _check(window, begin)
        yield window
        begin += len(window)


def _check(texts: Iterable[Any], begin: int) -> None:
    for place, text in enumerate(texts, start=begin):
        is_pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
        if not isinstance(text, str) and not is_pair:
            raise TypeError(
                f"sentences[{place}] is {text!r} of type {type(text).__name__}; expected a string, or a pair as a "
                "tuple of two. Drop the row, or give '' for a sentence without text."
            )


def predictions_of(task: Mapping[str, Any], logits: np.ndarray) -> list[Any]:
    """Returns what calibrated logits, (B, C), say of each sentence of a batch; see `predict` of `MTLModel`."""
    return _PREDICTIONS.get(task["problem_type"], _class_predictions)(task, logits)


def _class_predictions(task: Mapping[str, Any], logits: np.ndarray) -> list[dict[str, Any]]:
    # Temperatures are of probabilities: classes and rejections go by the logits as the head gave them.
    raw = logits * (task["calibration_temperature"] or 1.0)  # (B, C)
    if task["problem_type"] == "ordinal_classification":
        probabilities = _ordinal_probabilities(logits)  # (B, C)
        classes = (np.cumprod(_sigmoid(raw), axis=-1) > 0.5).sum(axis=-1)  # (B,)
    else:
        probabilities, classes = _softmax(logits), logits.argmax(axis=-1)  # (B, C), (B,)
    names = task["labels"]
    columns: dict[str, list[Any]] = {
        "label": [names[index] for index in classes.tolist()],
        "score": np.take_along_axis(probabilities, classes[:, None], axis=-1)[:, 0].tolist(),
        "probabilities": [dict(zip(names, row, strict=True)) for row in probabilities.tolist()],
    }
    if task["rejection_threshold"] is not None:
        sure = _CONFIDENCES[task["rejection_score"]](raw.astype(np.float64))  # (B,)
        columns["in_scope"] = (sure >= task["rejection_threshold"]).tolist()
        labels = zip(columns["label"], columns["in_scope"], strict=True)
        columns["label"] = [label if in_scope else task["out_of_scope_label"] for label, in_scope in labels]
    if task["abstention_threshold"] is not None:
        columns["abstains"] = [not score >= task["abstention_threshold"] for score in columns["score"]]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _multi_label_predictions(task: Mapping[str, Any], logits: np.ndarray) -> list[dict[str, Any]]:
    probabilities = _sigmoid(logits)  # (B, C)
    chosen = probabilities.astype(np.float64) >= np.array(task["label_thresholds"] or (0.5,))  # (B, C)
    return [
        {
            "labels": list(itertools.compress(task["labels"], is_chosen)),
            "probabilities": dict(zip(task["labels"], row, strict=True)),
        }
        for is_chosen, row in zip(chosen.tolist(), probabilities.tolist(), strict=True)
    ]


def _regression_predictions(task: Mapping[str, Any], logits: np.ndarray) -> list[Any]:
    if logits.shape[1] == 1:
        return list(logits[:, 0].tolist())
    return [dict(zip(task["labels"], row, strict=True)) for row in logits.tolist()]


_PREDICTIONS: dict[str, Callable[[Mapping[str, Any], np.ndarray], list[Any]]] = {
    "multi_label_classification": _multi_label_predictions,
    "regression": _regression_predictions,
}


def _gelu(values: np.ndarray) -> np.ndarray:
    """Returns x times the normal distribution function, by formula 7.1.26 of Abramowitz and Stegun, to 1.5e-7."""
    scaled = np.abs(values) * np.float32(0.5**0.5)
    t = 1.0 / (1.0 + 0.3275911 * scaled)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(values) * (1.0 - series * np.exp(-scaled * scaled))
    return 0.5 * values * (1.0 + erf)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


def _ordinal_probabilities(logits: np.ndarray) -> np.ndarray:
    ones = np.ones((len(logits), 1), logits.dtype)
    reaches = np.concatenate([ones, np.cumprod(_sigmoid(logits), axis=-1)], axis=-1)  # (B, C)
    return reaches * np.concatenate([_sigmoid(-logits), ones], axis=-1)


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    most = logits.max(axis=-1)
    return most + np.log(np.exp(logits - most[:, None]).sum(axis=-1))


_CONFIDENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "probability": lambda logits: _softmax(logits).max(axis=-1),
    "logit": lambda logits: logits.max(axis=-1),
    "energy": _logsumexp,
}

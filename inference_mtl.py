"""Encoding and predicting: sentences in, embeddings and labels out, from the model alone.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import LARGE_INTEGER
from transformers.utils import is_torch_bf16_gpu_available, logging

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .batching_mtl import BatchLimits, Text, padded_batches, position_limit, windows
        from .classification_mtl import predictions_of
        from .configuration_mtl import MTLConfig
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from batching_mtl import BatchLimits, Text, padded_batches, position_limit, windows
    from classification_mtl import predictions_of
    from configuration_mtl import MTLConfig

if TYPE_CHECKING:
    import numpy as np

logger = logging.get_logger(__name__)

Precision = Literal["fp32", "bf16", "auto"]
Predictions = list[dict[str, Any]]

_WINDOW_SIZE = 8192
_LONG_WORK_SENTENCES = 1600
_LONG_WORK_SECONDS = 5.0
# Chosen by measuring: a processor gains nothing by larger batches, a GPU is idle in small ones.
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ELSEWHERE = 32_768


@dataclass(frozen=True)
class _Wanted:
    """What a pass is to give.

    Args:
        embeddings: Whether embeddings are wanted.
        predictions: Whether predictions are wanted.
        normalize: Whether embeddings are scaled to L2 norm 1.
    """

    embeddings: bool
    predictions: bool
    normalize: bool


class InferenceMixin(PreTrainedModel):
    """Gives a model with a tokenizer, an encoder, a method `pool` and heads what turns sentences into answers.

    All methods share these arguments.

    - `sentences`: one sentence, or several. The empty string is a sentence: its special tokens are pooled, and if the
      tokenizer adds none its embedding is zero. In a list a tuple of two strings is a pair, whose texts are encoded
      together, beside sentences or not; one pair is a list of one tuple. Of an iterator some thousands are taken at a
      time.
    - `batch_size`: sentences per forward pass at most.
    - `max_batch_tokens`: tokens per forward pass, with padding, at most; if not given, what suits the device.
      Sentences of like length go together.
    - `precision`: `"fp32"` computes in the precision of the weights, and gives the same on every machine; `"bf16"` in
      bf16 autocast, faster where the processor has instructions for it, with differences of some 1e-3; `"auto"` in
      bf16 where it has, else as `"fp32"`. Pooling, normalisation and heads are in float32 in any case.
    - `show_progress_bar`: whether to show progress; by default only for long work.

    Several threads may call them at once if the model is in evaluation mode, as it is when loaded. All raise a
    TypeError if a sentence is neither a string nor a pair of them, and a ValueError if the model has no tokenizer,
    a count is less than 1, or the precision is unknown.
    """

    config: MTLConfig
    backbone: PreTrainedModel
    tokenizer: Any
    pool: Callable[[Tensor, Tensor], Tensor]

    @overload
    def encode(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int | None = ...,
        normalize_embeddings: bool | None = ...,
        convert_to_tensor: Literal[False] = ...,
        show_progress_bar: bool | None = ...,
        precision: Precision = ...,
        max_batch_tokens: int | None = ...,
    ) -> "np.ndarray": ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int | None = ...,
        normalize_embeddings: bool | None = ...,
        convert_to_tensor: Literal[True],
        show_progress_bar: bool | None = ...,
        precision: Precision = ...,
        max_batch_tokens: int | None = ...,
    ) -> Tensor: ...

    def encode(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int | None = None,
        normalize_embeddings: bool | None = None,
        convert_to_tensor: bool = False,
        show_progress_bar: bool | None = None,
        precision: Precision = "fp32",
        max_batch_tokens: int | None = None,
    ) -> "np.ndarray | Tensor":
        """Returns the embeddings of sentences, in their order; for arguments and errors see [`InferenceMixin`].

        Args:
            sentences: One sentence, or several.
            batch_size: Sentences per forward pass.
            normalize_embeddings: Whether to scale to L2 norm 1; the config's `normalize` if not given.
            convert_to_tensor: Whether to return a torch tensor instead of a numpy array.
            show_progress_bar: Whether to show progress.
            precision: `"fp32"`, `"bf16"` or `"auto"`.
            max_batch_tokens: Tokens per forward pass.

        Returns:
            Float32 embeddings on the CPU. Shape (H,) for one sentence, (N, H) for several.
        """
        wanted = self._wanted(True, False, normalize_embeddings)
        limits = self._limits(batch_size, max_batch_tokens)
        found = [some for some, _ in self._answers(sentences, wanted, limits, precision, show_progress_bar)]
        embeddings = torch.cat([torch.empty(0, self.config.hidden_size), *found])  # (N, H)
        embeddings = embeddings[0] if isinstance(sentences, str) else embeddings
        return embeddings if convert_to_tensor else embeddings.numpy()

    @overload  # A string is an iterable of strings too, but this one comes first.
    def predict(  # type: ignore[overload-overlap]
        self,
        sentences: str,
        *,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        precision: Precision = ...,
        max_batch_tokens: int | None = ...,
    ) -> dict[str, Any]: ...

    @overload
    def predict(
        self,
        sentences: Iterable[Text],
        *,
        batch_size: int | None = ...,
        show_progress_bar: bool | None = ...,
        precision: Precision = ...,
        max_batch_tokens: int | None = ...,
    ) -> Predictions: ...

    def predict(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision = "fp32",
        max_batch_tokens: int | None = None,
    ) -> dict[str, Any] | Predictions:
        """Predicts every task for sentences, from one pass; for arguments and errors see [`InferenceMixin`].

        Args:
            sentences: One sentence, or several.
            batch_size: Sentences per forward pass.
            show_progress_bar: Whether to show progress.
            precision: `"fp32"`, `"bf16"` or `"auto"`.
            max_batch_tokens: Tokens per forward pass.

        Returns:
            For each sentence a dict by task, of those that have a head (for one sentence, that dict): single-label
            `{"label", "score", "probabilities": {label: p}}`; ordinal the same, where the label is the median and the
            score its own; multi-label `{"labels", "probabilities"}` with the labels of probability >= 0.5, or from
            their `label_thresholds` on; regression a float, or `{output: float}` if there are several outputs.
            Scores and probabilities are calibrated where the task has a `calibration_temperature`.

            A single-label task with a rejection threshold also has `"in_scope"`. Where that is False, the label is
            the task's `out_of_scope_label`, and the score that of the likeliest class. A task with an abstention
            threshold also has `"abstains"`: whether the score is below it; the label is then the likeliest all the
            same.
        """
        wanted, limits = self._wanted(False, True, None), self._limits(batch_size, max_batch_tokens)
        found = self._answers(sentences, wanted, limits, precision, show_progress_bar)
        predictions = [said for _, some in found for said in some]
        return predictions[0] if isinstance(sentences, str) else predictions

    def encode_and_predict(
        self,
        sentences: Iterable[Text],
        *,
        batch_size: int | None = None,
        normalize_embeddings: bool | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision = "fp32",
        max_batch_tokens: int | None = None,
    ) -> "tuple[np.ndarray, Predictions]":
        """Returns what [`encode`] and what [`predict`] give for several sentences, from one pass.

        Args:
            sentences: The sentences.
            batch_size: Sentences per forward pass.
            normalize_embeddings: Whether to scale embeddings to L2 norm 1; the config's `normalize` if not given.
            show_progress_bar: Whether to show progress.
            precision: `"fp32"`, `"bf16"` or `"auto"`.
            max_batch_tokens: Tokens per forward pass.

        Returns:
            Float32 embeddings, (N, H), and a dict by task for each sentence.
        """
        _refuse_string(sentences, "encode_and_predict")
        wanted = self._wanted(True, True, normalize_embeddings)
        limits = self._limits(batch_size, max_batch_tokens)
        found = list(self._answers(sentences, wanted, limits, precision, show_progress_bar))
        embeddings = torch.cat([torch.empty(0, self.config.hidden_size), *(some for some, _ in found)])  # (N, H)
        return embeddings.numpy(), [said for _, some in found for said in some]

    def stream(
        self,
        sentences: Iterable[Text],
        *,
        batch_size: int | None = None,
        normalize_embeddings: bool | None = None,
        precision: Precision = "fp32",
        max_batch_tokens: int | None = None,
        window_size: int = 1024,
    ) -> "Iterator[tuple[np.ndarray, dict[str, Any]]]":
        """Yields embedding and predictions of each sentence, in their order, from one pass, with flat memory.

        Args:
            sentences: The sentences, which may have no end.
            batch_size: Sentences per forward pass.
            normalize_embeddings: Whether to scale embeddings to L2 norm 1; the config's `normalize` if not given.
            precision: `"fp32"`, `"bf16"` or `"auto"`.
            max_batch_tokens: Tokens per forward pass.
            window_size: Sentences that are taken at a time: more are sorted better, fewer are answered sooner.

        Yields:
            A float32 embedding, (H,), and a dict by task.
        """
        _refuse_string(sentences, "stream")
        wanted = self._wanted(True, True, normalize_embeddings)
        limits = self._limits(batch_size, max_batch_tokens, window_size)
        for embeddings, predictions in self._answers(sentences, wanted, limits, precision, False):
            yield from zip(embeddings.numpy(), predictions, strict=True)

    def max_tokens(self) -> int | None:
        """Returns the limit, in tokens, at which sentences are truncated; None if there is none."""
        limits = [self.tokenizer.model_max_length, self.config.max_seq_length, position_limit(self.config.text_config)]
        # A tokenizer that was saved without a limit has one of 1e30, which is more than it can read back.
        return min((limit for limit in limits if limit is not None and limit < LARGE_INTEGER), default=None)

    def _wanted(self, embeddings: bool, predictions: bool, normalize: bool | None) -> _Wanted:
        return _Wanted(embeddings, predictions, self.config.normalize if normalize is None else normalize)

    def _limits(
        self, batch_size: int | None, max_batch_tokens: int | None, window_size: int | None = None
    ) -> BatchLimits:
        if max_batch_tokens is None:
            max_batch_tokens = _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS_ELSEWHERE)
        return BatchLimits(max_batch_tokens, batch_size, _WINDOW_SIZE if window_size is None else window_size)

    def _answers(
        self,
        sentences: str | Iterable[Text],
        wanted: _Wanted,
        limits: BatchLimits,
        precision: str,
        show_progress_bar: bool | None,
    ) -> Iterator[tuple[Tensor, Predictions]]:
        """Yields embeddings, (W, H), and predictions of the sentences, window by window; of neither if not wanted."""
        if self.tokenizer is None:
            raise ValueError(
                f"This {type(self).__name__} has no tokenizer, as none was saved with it. Set one: "
                "`model.tokenizer = AutoTokenizer.from_pretrained(...)`."
            )
        dtype = self._autocast_dtype(precision)
        total = 1 if isinstance(sentences, str) else len(sentences) if isinstance(sentences, Sized) else None
        show = total is None or total > _LONG_WORK_SENTENCES if show_progress_bar is None else show_progress_bar
        # Nobody knows how many an iterator has, so there it shows once it takes long.
        delay = _LONG_WORK_SECONDS if total is None and show_progress_bar is None else 0.0
        with logging.tqdm(total=total, desc="Sentences", unit="sentence", disable=not show, delay=delay) as bar:
            for window in windows(sentences, limits.window_size):
                # Not around the `yield`: what the caller does in between is none of this.
                with self._evaluating():
                    answer = self._answer(window, wanted, limits, dtype, bar.update)
                yield answer

    def _answer(
        self,
        texts: list[Text],
        wanted: _Wanted,
        limits: BatchLimits,
        dtype: torch.dtype | None,
        progress: Callable[[int], Any],
    ) -> tuple[Tensor, Predictions]:
        embeddings = torch.empty(len(texts) if wanted.embeddings else 0, self.config.hidden_size)  # (W, H)
        predictions: Predictions = [{} for _ in texts] if wanted.predictions else []
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with autocast:  # Once for all batches: the weights are cast once, too.
            for rows, inputs in padded_batches(self.tokenizer, texts, self.max_tokens(), limits):
                inputs = inputs.to(self.device)
                states = self.backbone(**inputs, return_dict=True).last_hidden_state  # (B, T, H)
                with torch.autocast(self.device.type, enabled=False):
                    pooled = self.pool(states, inputs["attention_mask"])  # (B, H)
                    if wanted.embeddings:
                        embeddings[rows] = (F.normalize(pooled, dim=-1) if wanted.normalize else pooled).cpu()
                    if wanted.predictions:
                        logits = self(pooled=pooled).logits  # (B, C) each
                        for row, said in zip(rows.tolist(), self._predictions(logits, len(rows)), strict=True):
                            predictions[row] = said
                progress(len(rows))
        return embeddings, predictions

    def _predictions(self, logits: dict[str, Tensor], count: int) -> Predictions:
        by_task = {
            task.name: predictions_of(task, logits[task.name].cpu()) for task in self.config.tasks if task.has_head
        }
        if not by_task:
            return [{} for _ in range(count)]
        return [dict(zip(by_task, said, strict=True)) for said in zip(*by_task.values(), strict=True)]

    def _autocast_dtype(self, precision: str) -> torch.dtype | None:
        """Returns what the encoder computes in, or None for the precision of its weights."""
        if precision not in ("fp32", "bf16", "auto"):
            raise ValueError(f"precision must be 'fp32', 'bf16' or 'auto', found {precision!r}.")
        # Weights in half precision are computed with as they are.
        if precision == "fp32" or self.dtype != torch.float32:
            return None
        is_fast = has_fast_bf16(self.device)
        if precision == "bf16" and not is_fast:
            logger.warning_once(
                f"precision='bf16' is slow on this {self.device.type}, which has no instructions for it."
            )
        return torch.bfloat16 if precision == "bf16" or is_fast else None

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)


def has_fast_bf16(device: torch.device) -> bool:
    """Returns whether a device multiplies bfloat16 in hardware."""
    if device.type == "cpu":
        # Without these instructions bf16 is emulated, and measured ten times slower than fp32.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return is_torch_bf16_gpu_available()


def _refuse_string(sentences: Any, method: str) -> None:
    if isinstance(sentences, str):
        raise TypeError(
            f"`{method}` takes several sentences, found the string {sentences[:100]!r}. Give a list of it."
        )

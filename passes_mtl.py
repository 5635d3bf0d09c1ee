"""The pass through the encoder that answers everything: sentences in, embeddings and what the heads say out.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
class Wanted:
    """What a pass is to give.

    Args:
        embeddings: Whether embeddings are wanted.
        predictions: Whether predictions are wanted.
        normalize: Whether embeddings are scaled to L2 norm 1; the config's `normalize` if None.
    """

    embeddings: bool
    predictions: bool
    normalize: bool | None = None


class PassesMixin(PreTrainedModel):
    """Runs the encoder of a model, its method `pool` and its heads over sentences, window by window."""

    config: MTLConfig
    backbone: PreTrainedModel
    tokenizer: Any
    pool: Callable[[Tensor, Tensor], Tensor]

    def max_tokens(self) -> int | None:
        """Returns the limit, in tokens, at which sentences are truncated; None if there is none."""
        limits = [self.tokenizer.model_max_length, self.config.max_seq_length, position_limit(self.config.text_config)]
        # A tokenizer that was saved without a limit has one of 1e30, which is more than it can read back.
        return min((limit for limit in limits if limit is not None and limit < LARGE_INTEGER), default=None)

    def _limits(
        self, batch_size: int | None, max_batch_tokens: int | None, window_size: int | None = None
    ) -> BatchLimits:
        if max_batch_tokens is None:
            max_batch_tokens = _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS_ELSEWHERE)
        return BatchLimits(max_batch_tokens, batch_size, _WINDOW_SIZE if window_size is None else window_size)

    def _answers(
        self,
        sentences: str | Iterable[Text],
        wanted: Wanted,
        limits: BatchLimits,
        precision: str,
        show_progress_bar: bool | None,
    ) -> Iterator[tuple[Tensor, Predictions]]:
        """Returns embeddings, (W, H), and predictions of the sentences, by window; of neither if not wanted.

        What is wrong with the arguments is told at once, not when the first answer is asked for.
        """
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
        bar = {"total": total, "desc": "Sentences", "unit": "sentence", "disable": not show, "delay": delay}
        return self._answered(windows(sentences, limits.window_size), wanted, limits, dtype, bar)

    def _answered(
        self,
        taken: Iterator[list[Text]],
        wanted: Wanted,
        limits: BatchLimits,
        dtype: torch.dtype | None,
        bar: dict[str, Any],
    ) -> Iterator[tuple[Tensor, Predictions]]:
        with logging.tqdm(**bar) as progress:
            for window in taken:
                # Not around the `yield`: what the caller does in between is none of this.
                with self._evaluating():
                    answer = self._answer(window, wanted, limits, dtype, progress.update)
                yield answer

    def _answer(
        self,
        texts: list[Text],
        wanted: Wanted,
        limits: BatchLimits,
        dtype: torch.dtype | None,
        progress: Callable[[int], Any],
    ) -> tuple[Tensor, Predictions]:
        embeddings = torch.empty(len(texts) if wanted.embeddings else 0, self.config.hidden_size)  # (W, H)
        predictions: Predictions = [{} for _ in texts] if wanted.predictions else []
        normalize = self.config.normalize if wanted.normalize is None else wanted.normalize
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with autocast:  # Once for all batches: the weights are cast once, too.
            for rows, inputs in padded_batches(self.tokenizer, texts, self.max_tokens(), limits):
                inputs = inputs.to(self.device)
                states = self.backbone(**inputs, return_dict=True).last_hidden_state  # (B, T, H)
                with torch.autocast(self.device.type, enabled=False):
                    pooled = self.pool(states, inputs["attention_mask"])  # (B, H)
                    if wanted.embeddings:
                        embeddings[rows] = (F.normalize(pooled, dim=-1) if normalize else pooled).cpu()
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

"""Encoding and predicting: sentences in, embeddings and labels out, from the model alone.

The file travels with every saved model; see `modeling_mtl.py`.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .batching_mtl import Text
        from .passes_mtl import PassesMixin, Precision, Predictions, Wanted
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from batching_mtl import Text
    from passes_mtl import PassesMixin, Precision, Predictions, Wanted

if TYPE_CHECKING:
    import numpy as np


class InferenceMixin(PassesMixin):
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
    TypeError if a sentence is neither a string nor a pair of them, and a ValueError if one has half a character (a
    lone surrogate), the model has no tokenizer, a count is less than 1, or the precision is unknown.
    """

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
        wanted = Wanted(embeddings=True, predictions=False, normalize=normalize_embeddings)
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
        wanted, limits = Wanted(embeddings=False, predictions=True), self._limits(batch_size, max_batch_tokens)
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
        wanted = Wanted(embeddings=True, predictions=True, normalize=normalize_embeddings)
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
        """Returns an iterator over embedding and predictions of each sentence, in their order, with flat memory.

        Args:
            sentences: The sentences, which may have no end.
            batch_size: Sentences per forward pass.
            normalize_embeddings: Whether to scale embeddings to L2 norm 1; the config's `normalize` if not given.
            precision: `"fp32"`, `"bf16"` or `"auto"`.
            max_batch_tokens: Tokens per forward pass.
            window_size: Sentences that are taken at a time: more are sorted better, fewer are answered sooner.

        Returns:
            An iterator over pairs: a float32 embedding, (H,), and a dict by task.
        """
        _refuse_string(sentences, "stream")
        wanted = Wanted(embeddings=True, predictions=True, normalize=normalize_embeddings)
        limits = self._limits(batch_size, max_batch_tokens, window_size)
        answers = self._answers(sentences, wanted, limits, precision, False)
        # Not a `yield`, so that what is wrong with the arguments is told here and not at the first answer.
        return (pair for vectors, said in answers for pair in zip(vectors.numpy(), said, strict=True))


def _refuse_string(sentences: Any, method: str) -> None:
    if isinstance(sentences, str):
        raise TypeError(
            f"`{method}` takes several sentences, found the string {sentences[:100]!r}. Give a list of it."
        )

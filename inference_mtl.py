"""Encoding and predicting: sentences in, embeddings and labels out, from the model alone.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import LARGE_INTEGER
from transformers.utils import logging

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .classification_mtl import chosen_labels, class_prediction, probabilities
        from .configuration_mtl import MTLConfig, TaskConfig
        from .tasks_mtl import CLASS_TYPES, REGRESSION
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from classification_mtl import chosen_labels, class_prediction, probabilities
    from configuration_mtl import MTLConfig, TaskConfig
    from tasks_mtl import CLASS_TYPES, REGRESSION

if TYPE_CHECKING:
    import numpy as np

Text = str | tuple[str, str]
"""A sentence, or a pair of sentences that are encoded together."""

_LONG_WORK_BATCHES = 50
# Encoders that number their positions from the padding index on, so that two of them are never used.
_POSITIONS_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


class InferenceMixin(PreTrainedModel):
    """Gives a model with a tokenizer, a method `pool` and heads the methods `encode` and `predict`."""

    config: MTLConfig
    tokenizer: Any
    pool: Callable[[Tensor, Tensor], Tensor]

    @overload
    def encode(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int = ...,
        normalize_embeddings: bool | None = ...,
        convert_to_tensor: Literal[False] = ...,
        show_progress_bar: bool | None = ...,
    ) -> "np.ndarray": ...

    @overload
    def encode(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int = ...,
        normalize_embeddings: bool | None = ...,
        convert_to_tensor: Literal[True],
        show_progress_bar: bool | None = ...,
    ) -> Tensor: ...

    def encode(
        self,
        sentences: str | Iterable[Text],
        *,
        batch_size: int = 32,
        normalize_embeddings: bool | None = None,
        convert_to_tensor: bool = False,
        show_progress_bar: bool | None = None,
    ) -> "np.ndarray | Tensor":
        """Returns the embeddings of sentences, in their order.

        Several threads may call it at once if the model is in evaluation mode, as it is when loaded.

        Args:
            sentences: One sentence, or several. The empty string is a sentence: its special tokens are pooled, and if
                the tokenizer adds none its embedding is zero. In a list a tuple of two strings is a pair, whose texts
                are encoded together, beside sentences or not; one pair is a list of one tuple.
            batch_size: Sentences per forward pass.
            normalize_embeddings: Whether to scale to L2 norm 1; the config's `normalize` if not given.
            convert_to_tensor: Whether to return a torch tensor instead of a numpy array.
            show_progress_bar: Whether to show progress; by default only for long work.

        Returns:
            Float32 embeddings on the CPU. Shape (H,) for one sentence, (N, H) for several.

        Raises:
            TypeError: If a sentence is neither a string nor a pair of them.
            ValueError: If the model has no tokenizer, or `batch_size` is less than 1.
        """
        normalize = self.config.normalize if normalize_embeddings is None else normalize_embeddings
        texts = _as_texts(sentences)
        embeddings = torch.empty(len(texts), self.config.hidden_size)  # (N, H)
        for rows, output, mask in self._forward_sorted(texts, batch_size, show_progress_bar):
            pooled = self.pool(output.last_hidden_state, mask)  # (B, H)
            embeddings[rows] = (F.normalize(pooled, dim=-1) if normalize else pooled).cpu()
        embeddings = embeddings[0] if isinstance(sentences, str) else embeddings
        return embeddings if convert_to_tensor else embeddings.numpy()

    @overload  # A string is an iterable of strings too, but this one comes first.
    def predict(  # type: ignore[overload-overlap]
        self, sentences: str, *, batch_size: int = ..., show_progress_bar: bool | None = ...
    ) -> dict[str, Any]: ...

    @overload
    def predict(
        self, sentences: Iterable[Text], *, batch_size: int = ..., show_progress_bar: bool | None = ...
    ) -> list[dict[str, Any]]: ...

    def predict(
        self, sentences: str | Iterable[Text], *, batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Predicts every task for sentences, from one pass through the encoder.

        Args:
            sentences: One sentence, or several; in a list a tuple of two strings is a pair, as in [`encode`].
            batch_size: Sentences per forward pass.
            show_progress_bar: Whether to show progress; by default only for long work.

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

        Raises:
            TypeError: If a sentence is neither a string nor a pair of them.
            ValueError: If the model has no tokenizer, or `batch_size` is less than 1.
        """
        texts = _as_texts(sentences)
        predictions: list[dict[str, Any]] = [{} for _ in texts]
        for rows, output, _ in self._forward_sorted(texts, batch_size, show_progress_bar):
            for task in filter(lambda task: task.has_head, self.config.tasks):
                for row, logits in zip(rows.tolist(), output.logits[task.name].cpu(), strict=True):
                    predictions[row][task.name] = _prediction(task, logits)
        return predictions[0] if isinstance(sentences, str) else predictions

    def _forward_sorted(
        self, texts: list[Text], batch_size: int, show_progress_bar: bool | None
    ) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Yields, longest batch first, row numbers, (B,), the output, and the attention mask, (B, T)."""
        if self.tokenizer is None:
            raise ValueError(
                f"This {type(self).__name__} has no tokenizer, as none was saved with it. Set one: "
                "`model.tokenizer = AutoTokenizer.from_pretrained(...)`."
            )
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be an int of at least 1, found {batch_size!r}.")
        if not texts:
            return
        limit = self.max_tokens()
        encoded = tokenize(self.tokenizer, texts, truncation=limit is not None, max_length=limit, padding=False)
        lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])  # (N,)
        batches = lengths.argsort(descending=True, stable=True).split(batch_size)
        show = len(batches) > _LONG_WORK_BATCHES if show_progress_bar is None else show_progress_bar
        with self._evaluating():
            for rows in logging.tqdm(batches, desc="Sentences", unit="batch", disable=not show):
                columns = {key: [values[row] for row in rows.tolist()] for key, values in encoded.items()}
                # A tokenizer without special tokens makes none of '', and no encoder takes a batch of no tokens.
                longest = max(1, int(lengths[rows[0]]))
                batch = self.tokenizer.pad(columns, padding="max_length", max_length=longest, return_tensors="pt")
                batch = batch.to(self.device)
                yield rows, self(**batch), batch["attention_mask"]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)

    def max_tokens(self) -> int | None:
        """Returns the limit, in tokens, at which `encode` and `predict` truncate; None if there is none."""
        limits = [self.tokenizer.model_max_length, self.config.max_seq_length, position_limit(self.config.text_config)]
        # A tokenizer that was saved without a limit has one of 1e30, which is more than it can read back.
        return min((limit for limit in limits if limit is not None and limit < LARGE_INTEGER), default=None)


def _prediction(task: TaskConfig, logits: Tensor) -> Any:
    if task.problem_type in CLASS_TYPES:
        return class_prediction(task, logits)
    names = task.id2label.values()
    if task.problem_type == REGRESSION:
        values = dict(zip(names, logits.tolist(), strict=True))
        return logits.item() if task.num_labels == 1 else values
    by_name = dict(zip(names, probabilities(task, logits).tolist(), strict=True))
    chosen = [label for label, is_chosen in zip(names, chosen_labels(task, logits).tolist(), strict=True) if is_chosen]
    return {"labels": chosen, "probabilities": by_name}


def tokenize(tokenizer: Any, texts: Sequence[Text], **options: Any) -> dict[str, list[Any]]:
    """Tokenizes sentences and pairs, in their order; `options` go to the tokenizer, as they would for one kind."""
    columns: dict[str, list[Any]] = {}
    for is_pair in (False, True):
        places = [place for place, text in enumerate(texts) if isinstance(text, tuple) == is_pair]
        if not places:
            continue
        some = [texts[place] for place in places]
        encoded = tokenizer(*map(list, zip(*some, strict=True)), **options) if is_pair else tokenizer(some, **options)
        for name, values in encoded.items():
            column = columns.setdefault(name, [None] * len(texts))
            for place, value in zip(places, values, strict=True):
                column[place] = value
    return columns


def _as_texts(sentences: str | Iterable[Text]) -> list[Text]:
    # Iterating over a mapping or a table would give its keys or columns, which are strings too.
    # A numpy string is a string, but has no dimension.
    is_flat = isinstance(sentences, str) or getattr(sentences, "ndim", 1) == 1
    if not isinstance(sentences, Iterable) or isinstance(sentences, Mapping) or not is_flat:
        raise TypeError(
            f"sentences is of type {type(sentences).__name__}; expected a string or a list of strings, such as the "
            f"column of the texts. Found {str(sentences)[:100]!r}."
        )
    texts: list[Text] = [sentences] if isinstance(sentences, str) else list(sentences)
    for position, text in enumerate(texts):
        is_pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
        if not isinstance(text, str) and not is_pair:
            raise TypeError(
                f"sentences[{position}] is {text!r} of type {type(text).__name__}; expected a string. "
                "Drop the row, or give '' for a sentence without text; a pair of texts is a tuple of two strings."
            )
    return texts


def position_limit(text_config: PreTrainedConfig) -> int | None:
    """Returns how many tokens an encoder's position embeddings are for; None if its configuration has no limit."""
    limit = getattr(text_config, "max_position_embeddings", None)
    offset = 2 if text_config.model_type in _POSITIONS_AFTER_PADDING else 0
    return None if limit is None or limit < 1 else limit - offset

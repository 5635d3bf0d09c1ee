"""Texts on their way to the encoder: checked, taken in windows, tokenized, sorted by length, cut into batches, padded.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

Text = str | tuple[str, str]
"""A sentence, or a pair of sentences that are encoded together."""

# Encoders that number their positions from the padding index on, so that two of them are never used.
_POSITIONS_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


@dataclass(frozen=True)
class BatchLimits:
    """How many sentences go through the encoder at once.

    Args:
        max_batch_tokens: Tokens of a batch, with padding; a longer sentence is a batch by itself.
        batch_size: Sentences of a batch; as many as the tokens allow if None.
        window_size: Sentences that are read, tokenized and sorted at once.

    Raises:
        ValueError: If one of them is no int of at least 1.
    """

    max_batch_tokens: int
    batch_size: int | None
    window_size: int

    def __post_init__(self) -> None:
        """Checks the counts."""
        for name in ("batch_size", "max_batch_tokens", "window_size"):
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_count and not (name == "batch_size" and value is None):
                raise ValueError(f"{name} must be an int of at least 1, found {value!r}.")

    def cut(self, lengths: Tensor) -> list[Tensor]:
        """Returns the rows of each batch, longest first, from the lengths of all rows, (N,), in tokens."""
        order = lengths.argsort(descending=True, stable=True)  # (N,)
        batches, begin = [], 0
        while begin < len(order):
            size = max(1, self.max_batch_tokens // max(1, int(lengths[order[begin]])))
            size = size if self.batch_size is None else min(size, self.batch_size)
            batches.append(order[begin : begin + size])
            begin += size
        return batches


def windows(sentences: str | Iterable[Text], size: int) -> Iterator[list[Text]]:
    """Returns an iterator over sentences, so many at a time; of an iterator no more are taken than that.

    Raises:
        TypeError: If they are no sentences; the message gives the place of what is none. It comes at once where the
            sentences can be gone through twice, else when the place is reached.
        ValueError: If a sentence has half a character, likewise.
    """
    # Iterating over a mapping or a table would give its keys or columns, which are strings too.
    # A numpy string is a string, but has no dimension.
    is_flat = isinstance(sentences, str) or getattr(sentences, "ndim", 1) == 1
    if not isinstance(sentences, Iterable) or isinstance(sentences, Mapping) or not is_flat:
        raise TypeError(
            f"sentences is of type {type(sentences).__name__}; expected a string or a list of strings, such as the "
            f"column of the texts. Found {str(sentences)[:100]!r}."
        )
    texts = [sentences] if isinstance(sentences, str) else sentences
    cut = _windows(iter(texts), size)
    if isinstance(texts, Sized):
        _check(texts, 0)  # Else a fault at the end would come after hours of work.
        return cut
    return _checked(cut)


def _windows(texts: Iterator[Text], size: int) -> Iterator[list[Text]]:
    while window := list(itertools.islice(texts, size)):
        yield window


def _checked(cut: Iterator[list[Text]]) -> Iterator[list[Text]]:
    begin = 0
    for window in cut:
        _check(window, begin)
        yield window
        begin += len(window)


def _check(texts: Iterable[Any], begin: int) -> None:
    for position, text in enumerate(texts, start=begin):
        is_pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
        if not isinstance(text, str) and not is_pair:
            raise TypeError(
                f"sentences[{position}] is {text!r} of type {type(text).__name__}; expected a string. "
                "Drop the row, or give '' for a sentence without text; a pair of texts is a tuple of two strings."
            )
        # Of it the tokenizer says only that it wants text, and not where.
        if not all(map(_is_encodable, (text,) if isinstance(text, str) else text)):
            raise ValueError(
                f"sentences[{position}] is {text!r}, with half a character (a lone surrogate, of a cut emoji), that "
                "no tokenizer takes. Mend it: `text.encode('utf-8', 'replace').decode('utf-8')`."
            )


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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


def padded_batches(
    tokenizer: Any, texts: Sequence[Text], limit: int | None, limits: BatchLimits
) -> Iterator[tuple[Tensor, Any]]:
    """Yields, longest batch first, the numbers of its texts, (B,), and the inputs of the encoder, (B, T) each.

    Args:
        tokenizer: The tokenizer.
        texts: Sentences and pairs.
        limit: Tokens at which a text is cut; None if it is not.
        limits: What a batch may hold.
    """
    encoded = tokenize(tokenizer, texts, truncation=limit is not None, max_length=limit, padding=False)
    lengths = torch.tensor([len(ids) for ids in encoded["input_ids"]])  # (N,)
    for rows in limits.cut(lengths):
        columns = {key: [values[row] for row in rows.tolist()] for key, values in encoded.items()}
        # A tokenizer without special tokens makes none of '', and no encoder takes a batch of no tokens.
        longest = max(1, int(lengths[rows[0]]))
        yield rows, tokenizer.pad(columns, padding="max_length", max_length=longest, return_tensors="pt")


def position_limit(text_config: PreTrainedConfig) -> int | None:
    """Returns how many tokens an encoder's position embeddings are for; None if its configuration has no limit."""
    limit = getattr(text_config, "max_position_embeddings", None)
    offset = 2 if text_config.model_type in _POSITIONS_AFTER_PADDING else 0
    return None if limit is None or limit < 1 else limit - offset

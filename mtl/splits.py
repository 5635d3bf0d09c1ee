"""Which rows train, and which evaluate: a source's own splits, and cuts from train where it has none.

A source's own splits are used as they are. A source with split train but without validation, or without test, has
the missing one cut from its train; a source without train is left as it is. A cut goes by exact text and by the seed
alone: all rows of a text fall on one side, whatever the order of the rows. What is cut off in one source leaves train
in every source that is cut, and texts that stay in the train of a source that is not cut are the last to be cut off.
Texts that a source's own splits share with train are counted in a warning, and left out of validation and test only if
asked. Of rows with `text_pair` the pair of texts stands for the text, unless a source of single texts, or of rows with
`compare_with`, has its first text too: then that one does, as it does there, and rows that are listed twice, as pairs
to read together and as texts to compare, fall on one side.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtl.parts import Part, text_keys
from mtl.sources import PAIR_COLUMN, SPLITS, TEXT_COLUMN

logger = logging.getLogger(__name__)


def cut_missing_splits(parts: Sequence[Part], fractions: Mapping[str, float], seed: int) -> list[Part]:
    """Returns the parts, with the splits that a source lacks cut from its train.

    Args:
        parts: All parts of all sources.
        fractions: Share of a source's distinct train texts that each of validation and test gets; 0 for no cut.
        seed: Seed of the cuts.

    Raises:
        ValueError: If a source has too few distinct texts.
    """
    own = {(part.source.name, part.split) for part in parts}
    lacking = {
        name: [split for split, share in fractions.items() if share and (name, split) not in own]
        for name, split in own
        if split == "train"
    }
    trains = [part for part in parts if part.split == "train"]
    keys = _keys_by_source(trains)
    held_out = _choose_texts(keys, lacking, fractions, seed)
    pieces = []
    for part in parts:
        name = part.source.name
        pieces += _cut(part, keys[name], lacking[name], held_out) if part.split == "train" else [part]
    for piece in pieces:
        name, split, rows = piece.source.name, piece.split, f"{len(piece.rows):,}"
        origin = "the source's own" if (name, split) in own else f"cut from train with seed {seed}"
        if split == "train" and lacking[name]:
            origin = f"what is left of train without {' and '.join(lacking[name])}"
        logger.info("Source %r, split %r: %s rows, %s", name, split, rows, origin)
    return pieces


def check_overlap(splits: Mapping[str, pa.Table], *, drop: bool) -> dict[str, pa.Table]:
    """Warns of texts of validation and test that are also in train, or leaves their rows out.

    Two pairs are the same where both of their texts are; a pair and any other row where the first text is.

    Args:
        splits: The table of each split, with column `text`, and `text_pair` where rows are pairs.
        drop: Whether the rows are left out of validation and test.

    Raises:
        ValueError: If no row of a split would be left.
    """
    result = dict(splits)
    for split in [name for name in splits if name != "train" and "train" in splits]:
        shared = _is_shared(splits[split], splits["train"])
        if not shared.any():
            continue
        found = f"Split {split!r}: {int(shared.sum()):,} of {len(shared):,} rows have a text that is also in train"
        if drop and shared.all():
            raise ValueError(f"{found}, so `drop_overlap: true` leaves none. Give another {split} split.")
        logger.warning("%s; %s.", found, "they are left out" if drop else "set `drop_overlap: true` to leave them out")
        if drop:
            result[split] = splits[split].filter(pa.array(~shared))
    return result


def _keys_by_source(trains: Sequence[Part]) -> dict[str | None, pa.ChunkedArray]:
    """Returns what stands for each row where train is cut, by source: its first text, or its pair of texts."""
    apart = [part.texts.cast(pa.string()) for part in trains if part.source.text_pair is None]
    alone = pa.chunked_array([chunk for texts in apart for chunk in texts.chunks], pa.string())
    keys = {}
    for part in trains:
        pair = part.source.text_pair
        texts = part.texts.cast(pa.string())
        joined = text_keys(texts, None if pair is None else part.table[pair])
        keys[part.source.name] = pc.if_else(pc.is_in(texts, value_set=alone), texts, joined)
    return keys


def _choose_texts(
    keys: Mapping[str | None, pa.ChunkedArray],
    lacking: Mapping[str | None, Sequence[str]],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, set[str]]:
    # Ordered by a hash, and not shuffled, a text falls on the same side in every source.
    key = str(seed).encode()
    staying = {text for name, some in keys.items() if not lacking[name] for text in some.to_pylist()}
    held_out: dict[str, set[str]] = {split: set() for split in fractions}
    for name, some in keys.items():
        texts = pc.unique(some).to_pylist()
        counts = {split: max(1, round(fractions[split] * len(texts))) for split in lacking[name]}
        if sum(counts.values()) >= len(texts):
            raise ValueError(
                f"Source {name!r}: split 'train' has {len(texts)} distinct texts, too few to cut {counts} from it. "
                "Give these splits, or set their fractions to 0."
            )
        texts.sort(key=lambda text: (text in staying, hashlib.blake2b(text.encode(), digest_size=8, key=key).digest()))
        for split, count in counts.items():
            held_out[split].update(texts[:count])
            texts = texts[count:]
    return held_out


def _cut(train: Part, keys: pa.ChunkedArray, wanted: Sequence[str], held_out: Mapping[str, set[str]]) -> list[Part]:
    if not wanted:
        return [train]
    target = np.full(len(train.rows), "train", dtype="U10")
    for split, texts in held_out.items():
        # A text that is held out elsewhere never stays in train, even if this source has such a split of its own.
        target[_is_in(keys, pa.array(list(texts), pa.string()))] = split if split in wanted else wanted[0]
    return [train.filter(target == split, split) for split in SPLITS if (target == split).any()]


def _is_shared(table: pa.Table, train: pa.Table) -> npt.NDArray[np.bool_]:
    """Returns which rows of a table have a text, or the pair of texts, that train has too. Shape (rows,)."""
    texts, others = table[TEXT_COLUMN], train[TEXT_COLUMN]
    if PAIR_COLUMN not in table.column_names:
        return _is_in(texts, others)
    pairs, other_pairs = table[PAIR_COLUMN], train[PAIR_COLUMN]
    as_pairs = _is_in(text_keys(texts, pairs), text_keys(others, other_pairs))
    is_alone = pairs.is_null().to_numpy()
    return as_pairs | _is_in(texts, others.filter(other_pairs.is_null())) | (is_alone & _is_in(texts, others))


def _is_in(texts: pa.ChunkedArray, others: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    found = pc.is_in(texts.cast(pa.string()), value_set=others)
    return found.combine_chunks().to_numpy(zero_copy_only=False)

"""JSON lines as tables: nothing of a line is lost without a word, and faults are told with their row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mtl.bulk_inputs import InputColumns, check_contents, check_inputs, read_blocks
from mtl.bulk_json import BATCH_ROWS

COLUMNS = InputColumns("text", kept=("id",))


def lines(path: Path, ids: list[Any]) -> Path:
    """Writes a line for each id."""
    path.write_text("".join(json.dumps({"text": "a", "id": value}) + "\n" for value in ids), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    """Returns the ids that are read."""
    (block,) = read_blocks([path], COLUMNS, 10**6)
    found: list[Any] = block["id"].to_pylist()
    return found


@pytest.mark.parametrize(
    ("first", "later", "told"),
    [
        (1, 1.5, r"has 1\.5, of which the type of the rows before, int64, would keep 1\."),
        (1.5, True, r"has True, of which the type of the rows before, double, would keep 1\.0"),
        ({"a": 1}, {"a": 1, "b": 2}, r"would keep \{'a': 1\}"),
        ([1], [1, 2.5], r"would keep \[1, 2\]"),
        ({"a": [{"b": 1}]}, {"a": [{"c": 1}]}, r"would keep \{'a': \[\{'b': None\}\]\}"),
    ],
)
def test_what_the_type_of_the_begin_would_cut_is_told(first: Any, later: Any, told: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [first] * BATCH_ROWS + [first, later])
    with pytest.raises(ValueError, match=f"row {BATCH_ROWS + 1} .*column 'id' .*{told}"):
        read(path)


@pytest.mark.parametrize(
    ("first", "later"),
    [(1.5, 2), (None, {"a": 1}), ({"a": 1, "b": [2]}, {"b": None}), (float("nan"), float("nan")), (2, 2.0)],
)
def test_what_the_type_of_the_begin_holds_is_kept(first: Any, later: Any, tmp_path: Path) -> None:
    found = read(lines(tmp_path / "rows.jsonl", [first] * BATCH_ROWS + [later]))
    assert len(found) == BATCH_ROWS + 1
    (cell,) = pa.array([later, first]).to_pylist()[:1]
    assert found[-1] == cell or (cell != cell and found[-1] != found[-1])


def test_key_may_be_left_out_of_the_first_lines_and_a_shard_be_empty(tmp_path: Path) -> None:
    path, empty = tmp_path / "rows.jsonl", tmp_path / "empty.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "id": 2}\n')
    empty.write_text("\n")
    check_inputs([empty, path], COLUMNS)
    assert read(path) == [None, 2]
    (block,) = read_blocks([empty, path, empty], COLUMNS, 10)
    assert block["text"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize("content", ['{"text": "\\ud83d", "id": 1}', '{"text": "a", "id": 100000000000000000000}'])
def test_what_no_cell_holds_is_told_with_its_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"rows\.jsonl, rows 0 to 0: column '(text|id)' has values"):
        check_contents([path], COLUMNS)

"""Local files: every format gives the same rows, cells stay as they are, and what cannot be read says so."""

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import UNCUT, ToyRows, load_column
from datasets import DatasetDict

from configuration_mtl import TaskConfig
from mtl.data import load_sources
from mtl.sources import SourceConfig
from tasks_mtl import IGNORE_INDEX

TOPIC = TaskConfig("topic")


def write_file(rows: list[dict[str, Any]], path: Path) -> Path:
    """Writes rows in the format of the suffix, and returns the path."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            # A lone separator is the empty list.
            tags = [None if row["tags"] is None else "|".join(row["tags"]) or "|" for row in rows]
            writer.writerows({**row, "tags": cell} for row, cell in zip(rows, tags, strict=True))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".array.json"):
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def load_all(path: Path, tasks: tuple[TaskConfig, ...]) -> DatasetDict:
    """Returns the splits of a file whose columns bear the names of their tasks."""
    labels = {task.name: task.name for task in tasks}
    return load_sources([SourceConfig(str(path), labels=labels, label_separator="|")], tasks)[0]


@pytest.fixture
def rows(toy_rows: ToyRows) -> list[dict[str, Any]]:
    return toy_rows(60, 0)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "array.json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(
    suffix: str, rows: list[dict[str, Any]], tasks: tuple[TaskConfig, ...], tmp_path: Path
) -> None:
    expected = load_all(write_file(rows, tmp_path / "expected.parquet"), tasks)
    loaded = load_all(write_file(rows, tmp_path / f"rows.{suffix}"), tasks)
    assert loaded.num_rows == expected.num_rows
    for split, dataset in expected.items():
        assert dataset.features == loaded[split].features
        assert dataset.remove_columns("source").to_pandas().equals(loaded[split].remove_columns("source").to_pandas())


def test_cells_of_a_csv_are_taken_as_they_are(tmp_path: Path) -> None:
    content = '\ufefftopic,other,text\nNA,1,null\n007,x,"two\nlines, ""quoted"""\n7,y,None\n,z,nan\n'
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    labels, task = load_column(tmp_path / "a.csv", TOPIC)
    assert task.labels == ("007", "7", "NA")
    assert labels == [2, 0, 1, IGNORE_INDEX]
    splits, _ = load_sources([SourceConfig(str(tmp_path / "a.csv"), labels={"topic": "topic"})], [TOPIC], **UNCUT)
    assert splits["train"]["text"][:] == ["null", 'two\nlines, "quoted"', "None", "nan"]


def test_json_lines_may_hold_line_separators_and_lack_keys(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b", "topic": "x"}\n{"text": "c", "topic": "y"}\n{"text": "d"}')
    assert load_column(tmp_path / "a.jsonl", TOPIC)[0] == [0, 1, IGNORE_INDEX]


def test_strings_of_the_view_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    kind = pa.string_view()
    pyarrow.parquet.write_table(
        pa.table({"text": pa.array(["a", "b"], kind), "topic": pa.array(["x", "y"], kind)}), path
    )
    splits, (topic,) = load_sources([SourceConfig(str(path), labels={"topic": "topic"})], [TOPIC], **UNCUT)
    assert splits["train"]["text"][:] == ["a", "b"]
    assert topic.labels == ("x", "y")


def test_column_of_parquet_that_stands_twice(tmp_path: Path) -> None:
    arrays = [pa.array(["a"]), pa.array(["b"]), pa.array(["x"])]
    pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, ["text", "text", "topic"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a column stands twice in the header \['text', 'text', 'topic'\]"):
        load_sources([SourceConfig(str(tmp_path / "a.parquet"), labels={"topic": "topic"})], [TOPIC])


def test_categories_and_other_columns_do_no_harm(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "topic": pa.array(["y", None, "x"]), "when": [datetime.min] * 3})
    table = table.set_column(1, "topic", table["topic"].dictionary_encode())
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert load_column(tmp_path / "a.parquet", TOPIC) == (
        [1, IGNORE_INDEX, 0],
        TaskConfig("topic", labels=("x", "y")),
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "Text column 'text' is not in"),
        ("a.csv", b"text,topic\na,b,c\n", "Expected 2 columns, got 3"),
        ("a.csv", b"text,topic,text\na,b,c\n", "a column stands twice in the header"),
        ("a.csv", b"text,topic\n\xff\xfe,b\n", "utf-8|UTF8"),
        ("a.csv", b"text,topic\n", "Source 'a': split 'train' has no rows"),
        ("a.json", b"[]", "Text column 'text' is not in"),
        ("a.json", b'[{"text": "a"}, 3]', "row 1 is 3, not a JSON object"),
        ("a.json", b'[{"text": "a"},', "Expecting value"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "a", "topic": 1}\n{"text": "b", "topic": "x"}',
            "column 'topic' has 1 in row 0 and 'x'",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}', "column 'text' has 'a' in row 0 and 5 in row 1"),
        (
            "a.jsonl",
            b'{"text": "a", "topic": 1}\n{"text": "b", "topic": 9223372036854775808}',
            "column 'topic' has 9223372036854775808 in row 1, more than 64 bits hold. Write such numbers as strings",
        ),
        ("a.parquet", b"text", "cannot read .*a.parquet"),
        ("a.xlsx", b"", r"has suffix '.xlsx'; known are \['.csv', '.tsv', '.json', '.jsonl', '.parquet', '.txt'\]"),
    ],
)
def test_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_sources([SourceConfig(str(tmp_path / name), labels={"topic": "topic"})], [TOPIC])
    assert "ource 'a" in str(caught.value)


def test_text_file_holds_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes('\ufeffone\r\ntwo, "three"\nline\u2028separator\n'.encode())
    source = SourceConfig(str(path))
    topic = TaskConfig("topic", labels=("a", "b"))
    splits, _ = load_sources([source], [topic], taught=["topic"], **UNCUT)
    assert splits["train"]["text"][:] == ["one", 'two, "three"', "line\u2028separator"]
    assert splits["train"]["label_topic"][:] == [IGNORE_INDEX] * 3
    path.write_text("one\n\ntwo\n")
    with pytest.raises(ValueError, match=r"1 of 3 texts are missing, empty or white space, first in rows \[1\]"):
        load_sources([source], [topic], taught=["topic"], **UNCUT)

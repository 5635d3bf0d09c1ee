"""What a bulk run refuses before it works, and that no two write one output."""

import gzip
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batching_mtl import Text
from configuration_mtl import TaskConfig
from mtl.bulk import Answer, BulkJob, run_bulk
from mtl.bulk_inputs import InputColumns
from mtl.bulk_store import only_writer

ROOT = Path(__file__).resolve().parents[1]


class Lengths:
    """Has the length of a text as its embedding, and keeps the texts that it was asked."""

    tasks: Sequence[TaskConfig] = ()
    fingerprint = "lengths"

    def __init__(self) -> None:
        self.asked: list[Text] = []

    def answer(self, texts: Sequence[Text], *, embeddings: bool, predictions: bool) -> Answer:
        """Answers, until a text says stop."""
        if "stop" in texts:
            raise KeyboardInterrupt
        self.asked += texts
        return np.array([[len(text)] for text in texts], dtype=np.float32).reshape(-1, 1), None


def job(output: Path, *inputs: Path, kept: tuple[str, ...] = ("text",), **settings: Any) -> BulkJob:
    """Returns a job that embeds two rows at a time."""
    columns = InputColumns("text", kept=kept)
    return BulkJob(inputs, output, columns, predictions=False, embeddings=True, part_rows=2, **settings)


def text_file(path: Path, texts: list[str]) -> Path:
    """Writes a text a line."""
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def test_input_that_was_changed_in_its_middle_is_another(tmp_path: Path) -> None:
    texts = [f"row {number:06d} of many" for number in range(9000)]  # More than a key of its ends would take.
    texts[4500:4501] = ["stop"]
    path = text_file(tmp_path / "rows.txt", texts)
    with pytest.raises(KeyboardInterrupt):
        run_bulk(Lengths(), job(tmp_path / "out.parquet", path))
    texts[4000] = texts[4000].replace("many", "some")  # As long as before, and answered already.
    text_file(path, texts)
    with pytest.raises(FileExistsError, match=r"out\.parquet\.parts is there, and differs in: input\."):
        run_bulk(Lengths(), job(tmp_path / "out.parquet", path))


def test_bad_row_at_the_end_is_told_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n" + "1,a\n" * 5 + "1,a,b\n")
    model = Lengths()
    with pytest.raises(ValueError, match=r"rows\.csv: CSV parse error: .*Expected 2 columns, got 3"):
        run_bulk(model, job(tmp_path / "out.parquet", path))
    assert not model.asked
    path.write_text("id,text\n" + "1,a\n" * 5)
    assert run_bulk(model, job(tmp_path / "out.parquet", path)).rows == 5


def test_kept_columns_of_other_types_are_told_before_any_work(tmp_path: Path) -> None:
    for name, type_ in (("a", pa.int32()), ("b", pa.int64())):  # Of as many rows as a part, so that no block has both.
        pq.write_table(pa.table({"id": pa.array([1, 2], type_), "text": ["x", "y"]}), tmp_path / f"{name}.parquet")
    model, paths = Lengths(), (tmp_path / "a.parquet", tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: a column that is kept has another type .*int32 vs int64"):
        run_bulk(model, job(tmp_path / "out.parquet", *paths, kept=("id",)))
    assert not model.asked
    assert run_bulk(model, job(tmp_path / "out.parquet", *paths)).rows == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.parquet", b"PAR1 and no more"),
        ("rows.csv", "text\ncafé\n".encode("latin-1")),
        ("rows.csv.gz", b"text\n"),
        # Without the time, which would make another name of the test in each process.
        ("rows.txt.gz", gzip.compress(b"a text\n" * 3000, mtime=0)[:-20]),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*Mend the file"):
        run_bulk(Lengths(), job(tmp_path / "out.parquet", tmp_path / name))


def test_output_that_cannot_be_put_in_place_is_told_before_any_work(tmp_path: Path) -> None:
    path, folder, model = text_file(tmp_path / "rows.txt", ["a"]), tmp_path / "folder", Lengths()
    folder.mkdir()
    with pytest.raises(FileExistsError, match=r"is a folder\. Give the name of a file, or --parts"):
        run_bulk(model, job(folder, path, overwrite=True))
    with pytest.raises(FileExistsError, match="is a file, and parts go into a folder"):
        run_bulk(model, job(path, text_file(tmp_path / "others.txt", ["a"]), parts=True, overwrite=True))
    with pytest.raises(ValueError, match=r"The output is Parquet, but .*out\.csv .*Call it 'out\.parquet'"):
        job(tmp_path / "out.csv", path)
    with pytest.raises(
        ValueError, match=r"folder' is a folder\. Give its files, as a pattern: '.*folder/\*\.parquet'"
    ):
        run_bulk(model, job(tmp_path / "out.parquet", folder))
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"]}), table)
    with pytest.raises(ValueError, match=r"The input .*rows\.parquet is where the output goes"):
        run_bulk(model, job(table, table, overwrite=True))
    assert pq.read_schema(table).names == ["text"]
    with pytest.raises(ValueError, match="is where the output goes"):
        run_bulk(model, job(tmp_path, path, parts=True, overwrite=True))
    assert path.read_text() == "a\n"
    assert not model.asked


def test_one_process_at_a_time_writes_an_output(tmp_path: Path) -> None:
    path, output = text_file(tmp_path / "rows.txt", ["a", "b", "c"]), tmp_path / "out.parquet"
    hold = (
        "import sys; from pathlib import Path; from mtl.bulk_store import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(output)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FileExistsError, match=r"Another process is writing .*out\.parquet\. Wait for it"):
            run_bulk(Lengths(), job(output, path))
        other.kill()  # The lock goes with it.
        other.wait()
    assert run_bulk(Lengths(), job(output, path)).rows == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.parquet", "rows.txt"]


def test_lock_is_free_again_after_a_fault(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_writer(tmp_path / "out.parquet"):
        raise KeyError
    with only_writer(tmp_path / "out.parquet"):
        assert (tmp_path / "out.parquet.lock").is_file()
    assert not list(tmp_path.iterdir())

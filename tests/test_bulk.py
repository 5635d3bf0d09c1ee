"""Bulk runs over files: rows and their order, formats, missing texts, resuming after a kill, what is refused."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SaveBackbone

from modeling_mtl import MTLModel
from mtl import bulk_ray
from mtl.bulk import BulkJob, run_bulk
from mtl.bulk_inputs import InputColumns, read_blocks
from mtl.bulk_models import BulkOptions, TorchBulkModel
from mtl.bulk_ray import cores_each, run_bulk_on_ray
from mtl.cli import main as mtl
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION, TaskConfig

ROOT = Path(__file__).resolve().parents[1]
TEXT = "match team goal actor scene plot price order refund awful happy usual why now website"
WORDS = TEXT.split()
TASKS = (
    TaskConfig("topic", labels=("sport", "film", "shop"), abstention_threshold=0.34),
    TaskConfig("intent", labels=("buy", "sell"), out_of_scope_label="oos", rejection_threshold=0.5),
    TaskConfig("stars", ORDINAL, labels=("one", "two", "three")),
    TaskConfig("tags", MULTI_LABEL, labels=("urgent", "thanks")),
    TaskConfig("valence", REGRESSION),
    TaskConfig("emotion", REGRESSION, labels=("joy", "fear")),
)

Rows = list[dict[str, Any]]


@pytest.fixture
def model_dir(tmp_path: Path, backbone_dir: SaveBackbone) -> str:
    folder = tmp_path / "model"
    MTLModel.from_backbone(backbone_dir("bert"), tasks=TASKS).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(model_dir: str) -> TorchBulkModel:
    return TorchBulkModel(BulkOptions(model_dir, precision="fp32"))


@pytest.fixture
def rows() -> Rows:
    return [{"id": number, "text": " ".join(WORDS[: number % 7])} for number in range(25)]


def write_rows(path: Path, rows: Rows) -> Path:
    """Writes rows as what the ending of a file says."""
    suffixes = "".join(path.suffixes)
    if suffixes == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif suffixes.startswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if suffixes.endswith(".gz") else content)
    elif suffixes == ".txt":
        path.write_text("".join(row["text"] + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, rows[0], delimiter="\t" if suffixes == ".tsv" else ",", quoting=csv.QUOTE_NONNUMERIC
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


def job(tmp_path: Path, *inputs: Path, **settings: Any) -> BulkJob:
    columns = InputColumns("text", kept=settings.pop("kept", ()))
    return BulkJob(inputs, tmp_path / "out.parquet", columns, **{"part_rows": 4, **settings})


def test_rows_have_what_the_model_says_of_them(model: TorchBulkModel, tmp_path: Path, rows: Rows) -> None:
    file = write_rows(tmp_path / "in.parquet", rows)
    done: list[int] = []
    settings: dict[str, Any] = {"embeddings": True, "probabilities": True, "kept": ("id",)}
    result = run_bulk(model, job(tmp_path, file, **settings), progress=done.append)
    assert (result.rows, result.without_text, sum(done)) == (25, 0, 25)
    assert not (tmp_path / "out.parquet.parts").exists()
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == list(range(25))
    texts = [row["text"] for row in rows]
    embeddings, predictions = model.model.encode_and_predict(texts)
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), embeddings, atol=1e-6)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    for row, said in zip(table.to_pylist(), predictions, strict=True):
        assert row["topic"] == said["topic"]["label"]
        assert row["topic_score"] == pytest.approx(said["topic"]["score"], abs=1e-6)
        assert row["topic_abstains"] == said["topic"]["abstains"]
        assert (row["intent"], row["intent_in_scope"]) == (said["intent"]["label"], said["intent"]["in_scope"])
        assert row["stars"] == said["stars"]["label"]
        assert row["tags"] == said["tags"]["labels"]
        assert row["tags_probabilities"] == pytest.approx(said["tags"]["probabilities"], abs=1e-6)
        assert row["valence"] == pytest.approx(said["valence"], abs=1e-6)
        assert row["emotion"] == pytest.approx(said["emotion"], abs=1e-6)
    assert len(set(table["topic_score"].to_pylist())) == 7


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".jsonl.gz", ".parquet", ".txt"])
def test_every_format_gives_the_same(ending: str, model: TorchBulkModel, tmp_path: Path, rows: Rows) -> None:
    rows[3]["text"] = 'a "quoted", text\twith a tab'
    expected = model.model.encode([row["text"] for row in rows])
    files = [write_rows(tmp_path / f"{place}{ending}", part) for place, part in enumerate((rows[:10], rows[10:]))]
    run_bulk(model, job(tmp_path, *files, predictions=False, embeddings=True))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["embedding"]
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), expected, atol=1e-6)


@pytest.mark.parametrize("skip", [0, 1, 4, 10, 12, 24, 25])
def test_blocks_after_some_rows(skip: int, tmp_path: Path, rows: Rows) -> None:
    files = [write_rows(tmp_path / "1.parquet", rows[:10]), write_rows(tmp_path / "2.csv", rows[10:])]
    blocks = list(read_blocks(files, InputColumns("text"), 4, skip=skip))
    assert [text for block in blocks for text in block["text"].to_pylist()] == [row["text"] for row in rows[skip:]]
    assert all(block.num_rows == 4 for block in blocks[:-1])


def test_what_is_held_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def most_bytes(file: Path, count: int) -> int:
        with file.open("w") as lines:
            lines.writelines(json.dumps({"text": "x" * 100}) + "\n" for _ in range(count))
        before, most = pa.total_allocated_bytes(), 0
        for block in read_blocks([file], InputColumns("text"), 1000):
            most = max(most, pa.total_allocated_bytes() - before)
            assert block.num_rows == 1000
        return most

    assert most_bytes(tmp_path / "long.jsonl", 120_000) < 1.5 * most_bytes(tmp_path / "short.jsonl", 20_000)


def test_a_row_without_text_has_nulls(model: TorchBulkModel, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text('id,text\n1,match\n2,\n3,""\n')  # Missing, and empty.
    result = run_bulk(model, job(tmp_path, file, embeddings=True, kept=("id",)))
    assert (result.rows, result.without_text) == (3, 1)
    one, missing, empty = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert missing == {**dict.fromkeys(one), "id": "2"}
    assert empty["topic"] and empty["embedding"] == pytest.approx(model.model.encode("").tolist(), abs=1e-6)
    with pytest.raises(ValueError, match=r"Row 1 \(of all files, counted from 0\) has no text in \['text'\]"):
        run_bulk(model, job(tmp_path, file, strict=True, overwrite=True))
    file.write_text("id,text\n1,\n2,\n")
    run_bulk(model, job(tmp_path, file, embeddings=True, overwrite=True))
    assert pq.read_table(tmp_path / "out.parquet")["embedding"].null_count == 2


def test_pairs_are_read_together(model: TorchBulkModel, tmp_path: Path) -> None:
    rows: Rows = [{"a": "match", "b": "price why"}, {"a": "goal", "b": None}]
    file = write_rows(tmp_path / "in.jsonl", rows)
    result = run_bulk(model, BulkJob((file,), tmp_path / "out.parquet", InputColumns("a", "b"), embeddings=True))
    assert result.without_text == 1
    found = pq.read_table(tmp_path / "out.parquet")["embedding"].to_pylist()
    assert found[0] == pytest.approx(model.model.encode([("match", "price why")])[0].tolist(), abs=1e-6)
    assert found[1] is None


def test_what_is_there_is_not_answered_again(
    model: TorchBulkModel, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_rows(tmp_path / "in.csv", rows)
    run_bulk(model, job(tmp_path, file, kept=("id",)))
    whole = pq.read_table(tmp_path / "out.parquet")
    (tmp_path / "out.parquet").unlink()
    answered: list[int] = []
    answer = TorchBulkModel.answer

    def stop_after(count: int) -> Callable[..., Any]:
        def answer_or_stop(self: TorchBulkModel, texts: Any, **wanted: Any) -> Any:
            if len(answered) == count:
                raise KeyboardInterrupt
            answered.append(len(texts))
            return answer(self, texts, **wanted)

        return answer_or_stop

    monkeypatch.setattr(TorchBulkModel, "answer", stop_after(3))
    with pytest.raises(KeyboardInterrupt):
        run_bulk(model, job(tmp_path, file, kept=("id",)))
    parts = tmp_path / "out.parquet.parts"
    (parts / "part-000001.parquet").unlink()  # As if workers had come to different ends.
    (parts / "part-000003.123.tmp").write_bytes(b"half")
    monkeypatch.setattr(TorchBulkModel, "answer", stop_after(100))
    result = run_bulk(model, job(tmp_path, file, kept=("id",)))
    assert answered == [4, 4, 4, 4, 4, 4, 4, 1]
    assert (result.rows_before, result.rows) == (8, 17)
    assert pq.read_table(tmp_path / "out.parquet").equals(whole)
    again = run_bulk(model, job(tmp_path, file, kept=("id",)))
    assert (again.rows, again.rows_before) == (0, 0)


def test_an_output_of_something_else_is_kept(model: TorchBulkModel, tmp_path: Path, rows: Rows) -> None:
    file = write_rows(tmp_path / "in.parquet", rows)
    run_bulk(model, job(tmp_path, file))
    before = (tmp_path / "out.parquet").read_bytes()
    with pytest.raises(FileExistsError, match=r"is there, and differs in: tasks\. Give another --output, or"):
        run_bulk(model, job(tmp_path, file, tasks=("topic",)))
    write_rows(file, [*rows, rows[0]])
    with pytest.raises(FileExistsError, match="differs in: input"):
        run_bulk(model, job(tmp_path, file))
    assert (tmp_path / "out.parquet").read_bytes() == before
    run_bulk(model, job(tmp_path, file, tasks=("topic",), overwrite=True))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["topic", "topic_score", "topic_abstains"] and table.num_rows == 26
    (tmp_path / "out.parquet").write_bytes(b"no parquet")
    with pytest.raises(FileExistsError, match="was not written by this command"):
        run_bulk(model, job(tmp_path, file))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="has files that this command did not write"):
        run_bulk(model, BulkJob((file,), folder, InputColumns("text"), parts=True, overwrite=True))
    assert (folder / "letter.txt").read_text() == "dear"


def test_a_file_that_was_mended_is_begun_again(model: TorchBulkModel, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text":\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: this is not JSON"):
        run_bulk(model, job(tmp_path, file))
    file.write_text('{"text": "match"}\n', encoding="utf-8")
    assert run_bulk(model, job(tmp_path, file)).rows == 1


def test_parts_may_stay(model: TorchBulkModel, tmp_path: Path, rows: Rows) -> None:
    file = write_rows(tmp_path / "in.parquet", rows)
    folder = tmp_path / "parts"
    wanted = BulkJob((file,), folder, InputColumns("text", kept=("id",)), parts=True, part_rows=10)
    run_bulk(model, wanted)
    assert len(list(folder.glob("part-*.parquet"))) == 3
    assert pq.read_table(folder)["id"].to_pylist() == list(range(25))
    assert run_bulk(model, wanted).rows == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", "id,words\n1,a\n", r"in.csv: there is no column 'text', found \['id', 'words'\]"),
        ("in.csv", "text,text\na,b\n", "column 'text' stands twice"),
        ("in.csv", "id,text\n1,a\n2,b,c\n", "in.csv: CSV parse error: Row #3: Expected 2 columns, got 3: 2,b,c"),
        ("in.jsonl", '{"text": "a"}\n{"text": "b"\n', "in.jsonl, line 2: this is not JSON"),
        ("in.jsonl", '{"text": "a"}\n\n["b"]\n', r"in.jsonl, line 3: '\[\"b\"\]' is no object"),
        ("in.jsonl", '{"text": "a"}\n{"text": 3}\n', "column 'text' has values of more than one type"),
        ("in.xlsx", "", "its ending is none of .csv, .tsv"),
        ("in.csv", "id,text\n", "The input has no rows"),
    ],
)
def test_bad_files_are_told(name: str, content: str, message: str, model: TorchBulkModel, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        run_bulk(model, job(tmp_path, tmp_path / name))


def test_jobs_that_make_no_sense(model: TorchBulkModel, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "in.jsonl", [{"text": "a", "topic": "sport"}])
    with pytest.raises(ValueError, match=r"called 'topic'\. Give .* another name \(`--prefix predicted_`\)"):
        run_bulk(model, job(tmp_path, file, kept=("topic",)))
    run_bulk(model, job(tmp_path, file, kept=("topic",), prefix="predicted_"))
    assert "predicted_topic" in pq.read_schema(tmp_path / "out.parquet").names
    with pytest.raises(ValueError, match="The model has no task 'colour', found"):
        run_bulk(model, job(tmp_path, file, tasks=("colour",)))
    with pytest.raises(ValueError, match="Neither predictions nor embeddings"):
        job(tmp_path, file, predictions=False)
    with pytest.raises(ValueError, match="part_rows must be at least 1"):
        job(tmp_path, file, part_rows=0)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        run_bulk(model, job(tmp_path, tmp_path / "none.csv"))


def test_commands(
    model_dir: str, model: TorchBulkModel, tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(2):
        write_rows(tmp_path / f"in-{place}.csv", rows)
    out = tmp_path / "out.parquet"
    pattern = str(tmp_path / "in-*.csv")
    mtl(
        [
            "predict",
            model_dir,
            pattern,
            "--output",
            str(out),
            "--keep",
            "id",
            "--keep",
            "text",
            "--tasks",
            "topic",
            "--embeddings",
        ]
    )
    assert f"50 rows are in {out}." in capsys.readouterr().out
    assert pq.read_schema(out).names == ["id", "text", "topic", "topic_score", "topic_abstains", "embedding"]
    mtl(["encode", model_dir, pattern, "--output", str(tmp_path / "e.parquet"), "--precision", "fp32", "--quiet"])
    found = np.stack(pq.read_table(tmp_path / "e.parquet")["embedding"].to_numpy())
    np.testing.assert_allclose(found[25:], model.model.encode([row["text"] for row in rows]), atol=1e-6)
    with pytest.raises(SystemExit, match="mtl encode: error: There is no file 'none.csv'"):
        mtl(["encode", model_dir, "none.csv", "--output", str(tmp_path / "f.parquet")])


def test_what_is_wrong_with_the_files_is_told_before_the_model_is_loaded(
    tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "in.csv", rows)
    with pytest.raises(SystemExit, match="there is no column 'review', found"):
        mtl(["predict", "absent/model", str(file), "--text", "review", "--output", str(tmp_path / "out.parquet")])
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(model_dir: str, model: TorchBulkModel, tmp_path: Path, rows: Rows) -> None:
    file = write_rows(tmp_path / "in.csv", [{**row, "id": number} for number, row in enumerate(rows * 40)])
    run_bulk(model, job(tmp_path, file, kept=("id",), embeddings=True))
    whole = pq.read_table(tmp_path / "out.parquet")
    out = tmp_path / "killed.parquet"
    command = [sys.executable, "-m", "mtl.cli", "predict", model_dir, str(file), "--output", str(out), "--keep", "id"]
    command += ["--embeddings", "--part_rows", "4", "--precision", "fp32", "--quiet"]
    kills = 0
    while not out.exists():
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            parts = out.with_name("killed.parquet.parts")
            target = len(list(parts.glob("part-*.parquet"))) + 60
            while process.poll() is None and kills < 3:
                if len(list(parts.glob("part-*.parquet"))) >= target:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.002)
    assert kills == 3
    found = pq.read_table(out)
    assert found["id"].equals(whole["id"])
    for name in ("topic", "tags", "intent_in_scope"):
        assert found[name].equals(whole[name])
    left, right = (np.stack(table["embedding"].to_numpy()) for table in (found, whole))
    np.testing.assert_allclose(left, right, atol=1e-6)  # A sentence alone in a batch is summed in another order.


def test_workers_share_the_cores_that_there_are() -> None:
    assert [cores_each(8.0, workers) for workers in (1, 2, 3, 8)] == [8.0, 4.0, 2.0, 1.0]
    assert cores_each(2.0, 3) * 3 <= 2.0
    assert cores_each(1.0, 2) == 0.5


@pytest.mark.slow
def test_workers_of_ray_give_the_same(
    model_dir: str, model: TorchBulkModel, tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker(bulk_ray._Worker):
        def __call__(self, batch: pa.Table) -> pa.Table:
            (tmp_path / f"{os.getpid()}.worker").touch()
            until = time.monotonic() + 60
            while len(list(tmp_path.glob("*.worker"))) < 2 and time.monotonic() < until:
                time.sleep(0.05)  # For the other, which may start later.
            return super().__call__(batch)

    monkeypatch.setattr(bulk_ray, "_Worker", Worker)
    rows[2]["text"] = None
    file = write_rows(tmp_path / "in.jsonl", rows)
    settings: dict[str, Any] = {"kept": ("id",), "embeddings": True, "probabilities": True}
    run_bulk(model, job(tmp_path, file, **settings))
    plain = pq.read_table(tmp_path / "out.parquet")
    wanted = BulkJob(
        (file,),
        tmp_path / "ray.parquet",
        InputColumns("text", kept=("id",)),
        part_rows=4,
        **{name: value for name, value in settings.items() if name != "kept"},
    )
    options = BulkOptions(model_dir, precision="fp32")
    done: list[int] = []
    result = run_bulk_on_ray(model, wanted, options, workers=2, progress=done.append)
    assert (result.rows, result.without_text, sum(done)) == (25, 1, 25)
    assert len(list(tmp_path.glob("*.worker"))) == 2
    found = pq.read_table(tmp_path / "ray.parquet")
    assert found.schema.equals(plain.schema)
    assert found.select(["id", "topic", "tags", "stars"]).equals(plain.select(["id", "topic", "tags", "stars"]))
    for left, right in zip(found["embedding"].to_pylist(), plain["embedding"].to_pylist(), strict=True):
        assert (left is None and right is None) or left == pytest.approx(right, abs=1e-6)
    with pytest.raises(ValueError, match="workers must be at least 1, found 0"):
        run_bulk_on_ray(model, wanted, options, workers=0)

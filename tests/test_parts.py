"""Reading a source: files, folders, data sets of the Hub, their columns, and texts that are none."""

import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import UNCUT, WriteRows, load_column
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from configuration_mtl import TaskConfig
from mtl.data import load_sources
from mtl.parts import read_source
from mtl.sources import SourceConfig
from tasks_mtl import IGNORE_INDEX, REGRESSION

TOPIC = TaskConfig("topic")


def test_text_and_labels_under_other_names(write: WriteRows) -> None:
    path = write([{"review": "good", "stars": 5}, {"review": "bad", "stars": 1}])
    tasks = [TaskConfig("stars"), TaskConfig("as_number", REGRESSION)]
    source = SourceConfig(str(path), text="review", labels={"stars": "stars", "as_number": "stars"})
    splits, (stars, _) = load_sources([source], tasks, **UNCUT)
    assert splits["train"].to_dict() == {
        "text": ["good", "bad"], "label_stars": [1, 0], "label_as_number": [5.0, 1.0], "source": ["rows", "rows"]
    }  # fmt: skip
    assert stars.labels == ("1", "5")


def test_relative_paths_start_at_base_dir(write: WriteRows, tmp_path: Path) -> None:
    path = write([{"text": "a", "topic": "x"}, {"text": "b", "topic": "y"}])
    for source in (SourceConfig(path.name), SourceConfig(files={"train": path.name}), SourceConfig(str(path))):
        labelled = SourceConfig(source.path, source.files, {"topic": "topic"})
        assert load_sources([labelled], [TOPIC], base_dir=tmp_path, **UNCUT)[0].num_rows == {"train": 2}


def test_folder_of_the_working_directory_is_not_taken_for_one_of_base_dir(
    write: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="only 'rows' in the working directory"):
        read_source(SourceConfig("rows", labels={"topic": "topic"}), base_dir=tmp_path / "elsewhere")


def test_folder_with_a_file_a_split(write: WriteRows, tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(f"text,topic\nnull {name},NA\nb {name},x\n")
    write([], "notes.json")
    source = SourceConfig(str(tmp_path), labels={"topic": "topic"}, name="folder")
    splits, (task,) = load_sources([source], [TOPIC], test_fraction=0)
    assert splits.num_rows == {"train": 2, "validation": 2}
    assert task.labels == ("NA", "x")
    write([], "train.json")
    with pytest.raises(ValueError, match=r"several files for one split: \['dev.csv', 'train.csv', 'train.json'\]"):
        load_sources([source], [TOPIC])


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"text": ["a", "b"], "topic": ["x", "y"]})
    dataset.save_to_disk(str(tmp_path / "one"))
    assert load_column(tmp_path / "one", TOPIC)[0] == [0, 1]
    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "two"))
    source = SourceConfig(str(tmp_path / "two"), labels={"topic": "topic"})
    assert load_sources([source], [TOPIC], validation_fraction=0)[0].num_rows == {"train": 2, "test": 2}


def test_folder_as_a_clone_of_a_hub_data_set(tmp_path: Path) -> None:
    names = ClassLabel(names=["zebra", "ant"])
    features = Features({"text": Value("string"), "topic": names})
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "topic": [0, 1, -1]}, features=features)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        dataset.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    source = SourceConfig(str(tmp_path), labels={"topic": "topic"}, name="clone")
    splits, (task,) = load_sources([source], [TOPIC], validation_fraction=0)
    assert task.labels == ("zebra", "ant")
    assert splits["test"]["label_topic"][:] == [0, 1, IGNORE_INDEX]


def _dataset(**columns: Any) -> Dataset:
    return Dataset.from_dict({"text": ["a", "b"], "topic": ["x", "y"], **columns})


def test_name_config_and_revision_reach_load_dataset(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def load_dataset(path: str, **settings: Any) -> DatasetDict:
        calls.append((path, settings))
        splits = ("train", "dev", "test", "unsupervised")
        return DatasetDict({name: _dataset(idx=[0, 1]) for name in splits})

    monkeypatch.setattr("mtl.parts.load_dataset", load_dataset)
    source = SourceConfig("user/data", labels={"topic": "topic"}, config_name="en", revision="v1")
    splits, _ = load_sources([source], [TOPIC])
    assert calls == [("user/data", {"name": "en", "revision": "v1"})]
    assert splits.num_rows == {"train": 2, "validation": 2, "test": 2}
    assert "splits ['unsupervised'] are skipped" in caplog.text


@pytest.mark.parametrize("names", [["unsupervised"], ["dev", "validation"]])
def test_splits_that_are_unknown_or_ambiguous(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    loaded = DatasetDict({name: _dataset() for name in names})
    monkeypatch.setattr("mtl.parts.load_dataset", lambda *args, **settings: loaded)
    with pytest.raises(ValueError, match=r"Source 'data': its splits are .* Write the splits to files"):
        load_sources([SourceConfig("user/data", labels={"topic": "topic"})], [TOPIC])


def test_data_set_that_cannot_be_reached() -> None:
    with pytest.raises(FileNotFoundError, match="Source 'data': 'no-such-user/data' cannot be loaded"):
        load_sources([SourceConfig("no-such-user/data", labels={"topic": "topic"})], [TOPIC])


def test_wrong_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **settings: Any) -> DatasetDict:
        raise ValueError("BuilderConfig 'xx' not found.")

    monkeypatch.setattr("mtl.parts.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"'user/data' cannot be loaded .* BuilderConfig 'xx' not found"):
        load_sources([SourceConfig("user/data", labels={"topic": "topic"}, config_name="xx")], [TOPIC])


@pytest.mark.parametrize("path", ["reviews.csv", "data/reviews.parquet", "./reviews", "/nowhere/reviews", "~/no-such"])
def test_what_looks_like_a_file_is_never_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str) -> None:
    monkeypatch.chdir(tmp_path)  # The README lets people have a `reviews.csv` where they work.
    monkeypatch.setattr("mtl.parts.load_dataset", lambda *args, **settings: pytest.fail("looked up"))
    with pytest.raises(FileNotFoundError, match=r"Source '.*': there is no file '.*'. Correct the path"):
        load_sources([SourceConfig(path, labels={"topic": "topic"})], [TOPIC])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"labels": {"topic": "label"}},
            r"Task 'topic': column 'label' is not in split 'train' of source 'rows' \(found \['text', 'y'\]\)\. "
            r"Set `labels\.topic` in the source\.",
        ),
        (
            {"labels": {"topic": "y"}, "text": "review"},
            r"Text column 'review' is not in split 'train' of source 'rows' \(found \['text', 'y'\]\)\. Set `text`",
        ),
        (
            {"labels": {"topic": "y"}, "revision": "main"},
            "is a file; `config_name` and `revision` are for data sets",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_settings_that_do_not_fit_the_file(tmp_path: Path, suffix: str, source: dict[str, Any], message: str) -> None:
    dataset, path = Dataset.from_dict({"text": ["a", "b"], "y": ["c", "d"]}), tmp_path / f"rows.{suffix}"
    {"csv": dataset.to_csv, "json": dataset.to_json, "parquet": dataset.to_parquet}[suffix](str(path))
    with pytest.raises(ValueError, match=message):
        load_sources([SourceConfig(str(path), **source)], [TOPIC])


def test_no_wanted_column_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\nnot a number,3\n")
    Dataset.from_dict({"x": [1], "y": [2]}).save_to_disk(str(tmp_path / "saved"))
    for path in ("a.csv", "saved"):
        with pytest.raises(ValueError, match=r"Text column 'text' is not in .* \(found \['x', 'y'\]\)"):
            load_sources([SourceConfig(str(tmp_path / path), labels={"topic": "label"})], [TOPIC])


def test_missing_file_of_a_split(write: WriteRows, tmp_path: Path) -> None:
    files = {"train": str(write([])), "test": "no/test.csv"}
    (tmp_path / "rows.json").write_text('[{"text": "a", "topic": "b"}]')
    with pytest.raises(FileNotFoundError, match=r"there is no file .*no/test.csv"):
        load_sources([SourceConfig(files=files, labels={"topic": "topic"})], [TOPIC], base_dir=tmp_path)


def test_empty_texts(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["a", None, "", " \t\n\u00a0", "b", "c", "d"]
    path = write([{"text": text, "topic": "xy"[row % 2]} for row, text in enumerate(texts)])
    source = SourceConfig(str(path), labels={"topic": "topic"})
    message = (
        r"Source 'rows', split 'train', column 'text': 3 of 7 texts are missing, empty or white space, first in "
        r"rows \[1, 2, 3\] .* set `drop_empty: true`"
    )
    with pytest.raises(ValueError, match=message):
        load_sources([source], [TOPIC])
    with caplog.at_level(logging.INFO, logger="mtl"):
        splits, _ = load_sources([source], [TOPIC], drop_empty=True, **UNCUT)
    assert splits["train"]["text"][:] == ["a", "b", "c", "d"]
    assert splits["train"]["label_topic"][:] == [0, 0, 1, 0]
    assert "3 of 7 texts are missing, empty or white space; these rows are left out" in caplog.text


def test_nothing_but_empty_texts(write: WriteRows) -> None:
    source = SourceConfig(str(write([{"text": None, "topic": "x"}])), labels={"topic": "topic"})
    with pytest.raises(ValueError, match="Source 'rows': split 'train' has no rows"):
        load_sources([source], [TOPIC], drop_empty=True)


@pytest.mark.parametrize(("values", "kind"), [([None, 5], "int64"), ([["a"], ["b"]], "list"), ([True, True], "bool")])
def test_texts_that_are_no_strings(write: WriteRows, values: list[Any], kind: str) -> None:
    path = write([{"text": value, "topic": "x"} for value in values])
    with pytest.raises(ValueError, match=f"column 'text': a text must be a string, but the column is {kind}"):
        load_sources([SourceConfig(str(path), labels={"topic": "topic"})], [TOPIC])

"""Several sources to one set of splits, and the tokens of these with their cache."""

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import TOPICS, ToyRows, WriteRows
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import AutoTokenizer, BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

import mtl.data
from configuration_mtl import TaskConfig
from mtl.data import load_sources, tokenize_splits
from mtl.sources import SourceConfig
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION

ROOT = Path(__file__).resolve().parent.parent
TOPIC = TaskConfig("topic")
TAGS = TaskConfig("tags", MULTI_LABEL)
VALENCE = TaskConfig("valence", REGRESSION)
UNCUT: dict[str, Any] = {"validation_fraction": 0.0, "test_fraction": 0.0}


def same(first: Any, second: Any) -> bool:
    """Returns whether two nested lists of numbers are equal, where nan equals nan."""
    return np.array_equal(np.asarray(first, float), np.asarray(second, float), equal_nan=True)


def test_columns_and_types(toy_rows: ToyRows, tasks: tuple[TaskConfig, ...], write: WriteRows) -> None:
    wide = TaskConfig("wide", REGRESSION, num_labels=2)
    source = SourceConfig(
        str(write([{**row, "wide": [1, 2.5]} for row in toy_rows(30, 0)])),
        labels={name: name for name in ("topic", "sentiment", "tags", "valence", "wide")},
    )
    splits, _ = load_sources([source], [*tasks, wide], **UNCUT)
    assert splits["train"].features == Features(
        {
            "text": Value("string"),
            "label_topic": Value("int64"),
            "label_sentiment": Value("int64"),
            "label_tags": List(Value("float32"), length=4),
            "label_valence": Value("float32"),
            "label_wide": List(Value("float32"), length=2),
            "source": Value("string"),
        }
    )
    assert splits["train"].split == "train"
    assert set(splits["train"]["source"]) == {"rows"}


def test_rows_of_a_source_that_lacks_a_task_are_missing_for_it(write: WriteRows) -> None:
    tasks = [TOPIC, TAGS, VALENCE, TaskConfig("wide", REGRESSION, num_labels=2), TaskConfig("ids", num_labels=3)]
    first = write([{"text": "a", "topic": "x", "tags": ["t"], "ids": 2}, {"text": "b", "topic": "y"}], "first.json")
    second = write([{"text": "c", "v": 0.5, "wide": [1, 2]}], "second.json")
    sources = [
        SourceConfig(str(first), labels={"topic": "topic", "tags": "tags", "ids": "ids"}),
        SourceConfig(str(second), labels={"valence": "v", "wide": "wide"}, name="other"),
    ]
    splits, _ = load_sources(sources, tasks, **UNCUT)
    train = splits["train"][:]
    assert train["source"] == ["first", "first", "other"]
    assert train["label_topic"] == [0, 1, IGNORE_INDEX]
    assert train["label_ids"] == [2, IGNORE_INDEX, IGNORE_INDEX]
    nan = float("nan")
    assert same(train["label_tags"], [[1.0], [nan], [nan]])
    assert same(train["label_valence"], [nan, nan, 0.5])
    assert same(train["label_wide"], [[nan, nan], [nan, nan], [1, 2]])


def test_labels_come_from_the_train_rows_of_all_sources(write: WriteRows) -> None:
    paths = [write([{"text": name, "topic": name}], f"{name}.json") for name in ("b", "c", "a")]
    sources = [SourceConfig(str(path), labels={"topic": "topic"}) for path in paths]
    assert load_sources(sources, [TOPIC], **UNCUT)[1][0].labels == ("a", "b", "c")


def test_a_class_label_column_names_the_classes_for_all_sources(write: WriteRows, tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "y": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["a"], "y": [1]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    names, ids = write([{"text": "b", "y": "neg"}], "b.json"), write([{"text": "c", "y": 1}], "c.json")
    sources = [SourceConfig(str(path), labels={"topic": "y"}) for path in (names, tmp_path / "a.parquet", ids)]
    splits, (task,) = load_sources(sources, [TOPIC], **UNCUT)
    assert task.labels == ("neg", "pos")
    assert splits["train"]["label_topic"][:] == [0, 1, 1]


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ([], [], "No sources are given"),
        (["a", "b", "a"], [{"topic": "y"}] * 3, r"Sources \['a'\] stand more than once.*`name` of its own"),
        (["a"], [{"topick": "y"}], r"Source 'a': `labels` has \['topick'\], but the tasks are \['topic'\]"),
        (["a", "b"], [{}, {}], r"Task 'topic' has no label column in any source \['a', 'b'\]. Set `labels.topic`"),
    ],
)
def test_sources_and_tasks_that_do_not_fit(names: list[str], labels: list[dict[str, str]], message: str) -> None:
    sources = [SourceConfig("a.csv", labels=columns, name=name) for name, columns in zip(names, labels, strict=True)]
    with pytest.raises(ValueError, match=message):
        load_sources(sources, [TOPIC])


def test_the_embedded_corpus(caplog: pytest.LogCaptureFixture) -> None:
    tasks = [TOPIC, TaskConfig("sentiment", labels=("negative", "neutral", "positive")), VALENCE]
    labels = {task.name: task.name for task in tasks}
    source = SourceConfig("data/vader/vader.parquet", labels=labels, split_column="split")
    splits, (topic, _, _) = load_sources([source], tasks, base_dir=ROOT)
    assert splits.num_rows == {"train": 18_952, "validation": 2_275, "test": 2_328}
    assert topic.labels == ("movie_review", "news_editorial", "product_review", "tweet")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def splits(toy_rows: ToyRows, tmp_path: Path) -> DatasetDict:
    rows = toy_rows(100, 3)
    for number, row in enumerate(rows):
        row["text"] += " great match" * (number % 7)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = SourceConfig(str(tmp_path / "rows.json"), labels={"topic": "topic"})
    return load_sources([source], [TOPIC])[0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gives the sizes of the batches that are really tokenised."""
    calls: list[int] = []
    original = mtl.data._tokenize_batch

    def counted(texts: list[str], *args: Any, **settings: Any) -> dict[str, list[Any]]:
        calls.append(len(texts))
        return original(texts, *args, **settings)

    monkeypatch.setattr(mtl.data, "_tokenize_batch", counted)
    return calls


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_tokens_are_those_of_the_tokenizer(splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens, truncated = tokenize_splits(splits, tiny_tokenizer, max_length=16, keep_text=True)
    assert set(tokens) == set(splits)
    for name, split in tokens.items():
        texts = split["text"][:]
        assert split["input_ids"][:] == tiny_tokenizer(texts, truncation=True, max_length=16)["input_ids"]
        assert split["length"][:] == [len(ids) for ids in split["input_ids"]]
        assert truncated[name] == sum(len(ids) > 16 for ids in tiny_tokenizer(texts)["input_ids"])
    assert 0 < truncated["train"] < len(splits["train"])
    assert truncated.keys() == splits.keys()


def test_columns(splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens, _ = tokenize_splits(splits, tiny_tokenizer, max_length=16)
    assert set(tokens["train"].column_names) == {"input_ids", "length", "row", "label_topic", "source"}
    kept, _ = tokenize_splits(splits, tiny_tokenizer, max_length=16, keep_text=True)
    assert set(kept["train"].column_names) == {*tokens["train"].column_names, "text"}


def test_evaluation_goes_from_long_to_short_and_rows_tell_where_they_were(
    splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens, _ = tokenize_splits(splits, tiny_tokenizer, max_length=32, keep_text=True)
    assert tokens["train"]["row"][:] == list(range(len(splits["train"])))
    for name in ("validation", "test"):
        lengths, rows = tokens[name]["length"][:], tokens[name]["row"][:]
        assert lengths == sorted(lengths, reverse=True)
        assert sorted(rows) == list(range(len(splits[name])))
        for column in ("text", "label_topic"):
            assert tokens[name][column][:] == [splits[name][row][column] for row in rows]


def test_counts_are_logged(
    splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="mtl"):
        _, truncated = tokenize_splits(splits, tiny_tokenizer, max_length=16)
    assert f"train: truncated {truncated['train']} of 80 texts to 16 tokens" in caplog.text


def test_second_call_reads_the_cache(
    splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast, calls: list[int], cache: Path
) -> None:
    first, truncated = tokenize_splits(splits, tiny_tokenizer, max_length=16)
    assert calls == [80, 10, 10]
    second, truncated_again = tokenize_splits(splits, tiny_tokenizer, max_length=16, keep_text=True)
    assert calls == [80, 10, 10]
    assert truncated_again == truncated
    assert second["test"].remove_columns("text").to_dict() == first["test"].to_dict()
    third, _ = tokenize_splits(splits, tiny_tokenizer, max_length=16)
    assert [split._fingerprint for split in third.values()] == [split._fingerprint for split in first.values()]
    assert len(list((cache / "mtl").iterdir())) == 3


def test_how_the_tokenizer_was_called_does_not_matter(
    splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast, calls: list[int]
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenize_splits(splits, tokenizer, max_length=16)
    tokenizer(["great match"], truncation=True, max_length=3, padding="max_length")
    tokens, _ = tokenize_splits(splits, tokenizer, max_length=16)
    assert len(calls) == 3
    assert max(tokens["train"]["length"]) == 16


def test_other_length_text_or_vocabulary_is_tokenised_anew(
    splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast, calls: list[int], tmp_path: Path
) -> None:
    tokenize_splits(splits, tiny_tokenizer, max_length=16)
    tokenize_splits(splits, tiny_tokenizer, max_length=17)
    assert len(calls) == 6
    tokenize_splits(DatasetDict(test=splits["test"].select(range(5))), tiny_tokenizer, max_length=16)
    assert calls[6:] == [5]
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    reloaded.add_tokens(["great match"])
    tokenize_splits(splits, reloaded, max_length=16)
    assert len(calls) == 10


@pytest.mark.slow
def test_another_process_hits_the_same_cache(
    splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, cache: Path
) -> None:
    tokenize_splits(splits, tiny_tokenizer, max_length=16)
    files = {file.name: file.stat().st_mtime_ns for file in (cache / "mtl").iterdir()}
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys; from transformers import AutoTokenizer; from configuration_mtl import TaskConfig\n"
        "from mtl.data import SourceConfig, load_sources, tokenize_splits\n"
        "source = SourceConfig(sys.argv[1], labels={'topic': 'topic'})\n"
        "splits, _ = load_sources([source], [TaskConfig('topic')])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])\n"
        "tokenize_splits(splits, tokenizer, max_length=16)\n"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    arguments = [str(tmp_path / "rows.json"), str(tmp_path / "tokenizer")]
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, cwd=tmp_path)
    assert {name: (cache / "mtl" / name).stat().st_mtime_ns for name in files} == files


def test_without_caching_nothing_is_written(
    splits: DatasetDict, tiny_tokenizer: PreTrainedTokenizerFast, cache: Path
) -> None:
    datasets.disable_caching()
    try:
        tokens, _ = tokenize_splits(splits, tiny_tokenizer, max_length=16)
    finally:
        datasets.enable_caching()
    assert tokens.num_rows == splits.num_rows
    assert not cache.exists()


def test_tokenizer_that_truncates_on_the_left(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    left = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", truncation_side="left")
    text = Dataset.from_dict({"text": ["great match awful sad", "team"]})
    tokens, truncated = tokenize_splits(DatasetDict(train=text), left, max_length=4)
    words = [left.decode(ids, skip_special_tokens=True) for ids in tokens["train"]["input_ids"]]
    assert words == ["awful sad", "team"]
    assert truncated == {"train": 1}
    left.truncation_side = "right"  # An attribute that no saved file knows of.
    tokens, _ = tokenize_splits(DatasetDict(train=text), left, max_length=4)
    assert left.decode(tokens["train"]["input_ids"][0], skip_special_tokens=True) == "great match"


def test_tokenizer_written_in_python(calls: list[int]) -> None:
    text = DatasetDict(train=Dataset.from_dict({"text": ["great match", "team"]}))
    for _ in range(2):
        tokens, truncated = tokenize_splits(text, ByT5Tokenizer(), max_length=6)
        # Bytes, after 3 special tokens, and the end.
        assert tokens["train"]["input_ids"][:] == [
            [*(byte + 3 for byte in b"great"), 1],
            [*(b + 3 for b in b"team"), 1],
        ]
        assert truncated == {"train": 1}
    assert calls == [2]


def test_rows_that_were_chosen_from_a_larger_split(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = Dataset.from_dict({"text": [f"team {number}" for number in range(9)], "label_topic": list(range(9))})
    tokens, _ = tokenize_splits(
        DatasetDict(test=texts.select([7, 2, 5])), tiny_tokenizer, max_length=9, keep_text=True
    )
    assert tokens["test"].select_columns(["row", "text", "label_topic"]).to_dict() == {
        "row": [0, 1, 2], "text": ["team 7", "team 2", "team 5"], "label_topic": [7, 2, 5]
    }  # fmt: skip
    assert tiny_tokenizer.batch_decode(tokens["test"]["input_ids"][:], skip_special_tokens=True) == [
        "team 7", "team 2", "team 5"
    ]  # fmt: skip


def test_extra_inputs_of_the_tokenizer_are_kept_but_not_the_mask(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = BertTokenizer(tiny_tokenizer.get_vocab())
    text = Dataset.from_dict({"text": ["great match awful sad", "team"]})
    tokens, _ = tokenize_splits(DatasetDict(train=text), tokenizer, max_length=5)
    assert set(tokens["train"].column_names) == {"input_ids", "token_type_ids", "length", "row"}
    assert [len(ids) for ids in tokens["train"]["token_type_ids"]] == [5, 3]


@pytest.mark.parametrize(
    ("column", "max_length", "message"),
    [
        ("text", 2, "max_length is 2 tokens, of which 2 are special"),
        ("y", 9, r"has no column 'text' \(found \['y'\]"),
    ],
)
def test_errors(tiny_tokenizer: PreTrainedTokenizerFast, column: str, max_length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize_splits(DatasetDict(train=Dataset.from_dict({column: ["a"]})), tiny_tokenizer, max_length=max_length)


def test_toy_rows_are_deterministic_and_partly_unlabelled(toy_rows: ToyRows) -> None:
    rows = toy_rows(200, 0)
    assert rows == toy_rows(200, 0) != toy_rows(200, 1)
    for column in ("topic", "sentiment", "tags", "valence"):
        assert 0.1 < sum(row[column] is None for row in rows) / len(rows) < 0.3
    assert all(any(word in row["text"] for word in TOPICS[row["topic"]].split()) for row in rows if row["topic"])

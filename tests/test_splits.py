"""Which rows are in which split: own splits, cuts, and texts that would stand on both sides."""

import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteRows
from datasets import Dataset, DatasetDict

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.data import load_sources
from mtl.settings import JsonObject, RunSettings
from mtl.sources import SourceConfig
from tasks_mtl import SCORED_PAIRS
from train_setup import read_sources

TOPIC = TaskConfig("topic")


def numbered(n: int, prefix: str = "text") -> list[dict[str, Any]]:
    """Returns rows with the texts `<prefix> 0`, `<prefix> 1` ..."""
    return [{"text": f"{prefix} {number}", "topic": "xy"[number % 2]} for number in range(n)]


def texts_of(splits: DatasetDict) -> dict[str, list[str]]:
    """Returns the texts of every split."""
    return {name: split["text"][:] for name, split in splits.items()}


def load_texts(*paths: Path, **settings: Any) -> dict[str, list[str]]:
    """Returns the texts of every split of sources that label the topic."""
    sources = [SourceConfig(str(path), labels={"topic": "topic"}) for path in paths]
    return texts_of(load_sources(sources, [TOPIC], **settings)[0])


def test_label_whose_rows_are_all_cut_off_is_known(write: WriteRows) -> None:
    rows = [*numbered(9), {"text": "the only one", "topic": "z"}]
    seen = set()
    for seed in range(8):
        splits, (task,) = load_sources(
            [SourceConfig(str(write(rows)), labels={"topic": "topic"})], [TOPIC], seed=seed, test_fraction=0.3
        )
        assert task.labels == ("x", "y", "z")
        seen |= {name for name, texts in texts_of(splits).items() if "the only one" in texts}
    assert seen - {"train"}, "It was never cut off."


def test_own_splits_are_used_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["train", "VAL", " dev", "Test", "valid", "validation", "train"]
    rows = [{**row, "part": name} for row, name in zip(numbered(7), names, strict=True)]
    Dataset.from_list(rows).to_csv(str(tmp_path / "a.csv"))
    source = SourceConfig(str(tmp_path / "a.csv"), labels={"topic": "topic"}, split_column="part")
    with caplog.at_level(logging.INFO, logger="mtl"):
        splits, _ = load_sources([source], [TaskConfig("topic", labels=("x", "y"))])
    assert texts_of(splits) == {
        "train": ["text 0", "text 6"],
        "validation": ["text 1", "text 2", "text 4", "text 5"],
        "test": ["text 3"],
    }
    assert "Source 'a', split 'validation': 4 rows, the source's own" in caplog.text


def test_missing_splits_are_cut_from_train(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mtl"):
        splits = load_texts(write(numbered(1000)))
    assert {name: len(texts) for name, texts in splits.items()} == {"train": 800, "validation": 100, "test": 100}
    assert len({text for texts in splits.values() for text in texts}) == 1000
    assert "split 'test': 100 rows, cut from train with seed 42" in caplog.text
    assert "split 'train': 800 rows, what is left of train without test and validation" in caplog.text


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["train"], {"train": 80, "validation": 10, "test": 10}),
        (["train", "test"], {"train": 90, "validation": 10, "test": 100}),
        (["train", "validation"], {"train": 90, "validation": 100, "test": 10}),
        (["train", "validation", "test"], {"train": 100, "validation": 100, "test": 100}),
        (["test"], {"test": 100}),
        (["validation", "test"], {"validation": 100, "test": 100}),
    ],
)
def test_only_what_is_missing_is_cut(write: WriteRows, own: list[str], expected: dict[str, int]) -> None:
    files = {name: str(write(numbered(100, name), f"{name}.json")) for name in own}
    source = SourceConfig(files=files, labels={"topic": "topic"}, name="a")
    assert load_sources([source], [TaskConfig("topic", labels=("x", "y"))])[0].num_rows == expected


def test_cut_goes_by_seed_and_text_not_by_the_order_of_rows(write: WriteRows) -> None:
    rows = numbered(200)
    first, again = load_texts(write(rows)), load_texts(write(rows[::-1], "turned.json"))
    assert {name: sorted(texts) for name, texts in first.items()} == {
        name: sorted(texts) for name, texts in again.items()
    }
    assert first == load_texts(write(rows))
    assert first != load_texts(write(rows), seed=1)


def test_program_cuts_by_a_seed_of_its_own(write: WriteRows, tmp_path: Path) -> None:
    source = JsonObject({"path": str(write(numbered(200))), "labels": {"topic": "topic"}})

    def read(seed: int, **settings: Any) -> dict[str, list[str]]:
        run = RunSettings(tasks=[JsonObject({"name": "topic"})], sources=[source], **settings)
        args = MTLTrainingArguments(str(tmp_path), seed=seed)
        return texts_of(read_sources(run, args, run.task_configs(), taught=())[0])

    assert read(seed=1) == read(seed=2)
    assert read(seed=1) != read(seed=1, split_seed=1)


def test_equal_texts_fall_on_one_side(write: WriteRows) -> None:
    splits = load_texts(write([{**row, "text": f"text {number // 5}"} for number, row in enumerate(numbered(500))]))
    assert {name: len(texts) for name, texts in splits.items()} == {"train": 400, "validation": 50, "test": 50}
    sides = [set(texts) for texts in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 100


def test_no_cut_leaks_between_sources(write: WriteRows) -> None:
    first = write(numbered(300), "first.json")
    second = write(numbered(400)[100:], "second.json")
    splits = load_texts(first, second)
    assert not set(splits["train"]) & {*splits["validation"], *splits["test"]}
    assert not set(splits["validation"]) & set(splits["test"])


def test_source_with_a_test_of_its_own_gives_up_what_another_one_tests_on(write: WriteRows) -> None:
    files = {"train": str(write(numbered(300), "own.json")), "test": str(write(numbered(9, "own"), "t.json"))}
    cut = SourceConfig(str(write(numbered(300), "cut.json")), labels={"topic": "topic"})
    splits, _ = load_sources([SourceConfig(files=files, labels={"topic": "topic"}), cut], [TOPIC])
    texts = texts_of(splits)
    assert not set(texts["train"]) & {*texts["validation"], *texts["test"]}


PAIRS = [{"one": f"one {n // 4}", "two": f"two {n}", "same": "yn"[n % 2], "score": n / 400} for n in range(400)]
TOGETHER: dict[str, Any] = {"text": "one", "text_pair": "two", "labels": {"same": "same"}, "name": "together"}
APART: dict[str, Any] = {"text": "one", "compare_with": ["two"], "labels": {"near": "score"}, "name": "apart"}
PAIR_TASKS = [TaskConfig("same", labels=("y", "n")), TaskConfig("near", SCORED_PAIRS)]


def pairs_of(splits: DatasetDict, source: str) -> dict[str, set[tuple[str, str]]]:
    """Returns the pairs of a source in every split, in whichever column the second text stands."""
    second = "text_pair" if source == "together" else "further_1"
    rows = {name: split.filter(lambda row: row["source"] == source)[:] for name, split in splits.items()}
    return {name: set(zip(some["text"], some[second], strict=True)) for name, some in rows.items()}


def test_rows_listed_twice_fall_on_one_side(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    path = str(write(PAIRS))
    sources = [SourceConfig(path, **TOGETHER), SourceConfig(path, **APART)]
    splits, _ = load_sources(sources, PAIR_TASKS)
    together, apart = pairs_of(splits, "together"), pairs_of(splits, "apart")
    assert together == apart
    assert {name: len(rows) for name, rows in together.items()} == {"train": 320, "validation": 40, "test": 40}
    assert sum(len({first for first, _ in rows}) for rows in together.values()) == 100
    assert "also in train" not in caplog.text
    # In the other order too, and as the second source alone is cut.
    assert pairs_of(load_sources(sources[::-1], PAIR_TASKS)[0], "together") == together
    assert pairs_of(load_sources(sources[1:], PAIR_TASKS[1:])[0], "apart") == apart


def test_pairs_are_cut_by_the_pair_where_no_other_source_has_the_first_text(write: WriteRows) -> None:
    together, single = SourceConfig(str(write(PAIRS)), **TOGETHER), write(numbered(50), "single.json")
    alone = pairs_of(load_sources([together], PAIR_TASKS[:1])[0], "together")
    mixed = [together, SourceConfig(str(single), labels={"topic": "topic"})]
    assert pairs_of(load_sources(mixed, [PAIR_TASKS[0], TOPIC])[0], "together") == alone
    assert {first for first, _ in alone["train"]} & {first for first, _ in alone["test"]}  # By the pair.
    shared = write([*numbered(50), {"text": "one 7", "topic": "x"}], "single.json")
    mixed = [together, SourceConfig(str(shared), labels={"topic": "topic"})]
    rows = pairs_of(load_sources(mixed, [PAIR_TASKS[0], TOPIC])[0], "together")
    assert [sum(first == "one 7" for first, _ in some) for some in rows.values()].count(0) == 2


def test_overlap_is_seen_across_columns(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    def files(train: list[dict[str, Any]], test: list[dict[str, Any]], name: str) -> dict[str, str]:
        rows = {"train": train, "test": test}
        return {split: str(write(some, f"{name}-{split}.json")) for split, some in rows.items()}

    # Of the pairs 'one 0' is compared in train, 'one 1' is a pair with others in train, and 'one 2' is new. Of the
    # comparisons 'one 1' is in train's pairs, and 'one 3' is new.
    together = files([PAIRS[4]], [PAIRS[0], PAIRS[5], PAIRS[8]], "together")
    apart = files([PAIRS[1]], [PAIRS[6], PAIRS[12]], "apart")
    sources = [SourceConfig(files=together, **TOGETHER), SourceConfig(files=apart, **APART)]
    splits, _ = load_sources(sources, PAIR_TASKS, validation_fraction=0.0, drop_overlap=True)
    assert "Split 'test': 2 of 5 rows have a text that is also in train" in caplog.text
    assert splits["test"]["text"][:] == ["one 1", "one 2", "one 3"]


def test_texts_that_stay_in_train_elsewhere_are_cut_last(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    files = {name: str(write(numbered(100, name), f"{name}.json")) for name in ("train", "dev", "test")}
    cut = write([*numbered(100, "train"), *numbered(25, "only here")], "cut.json")
    sources = [SourceConfig(files=files, name="own"), SourceConfig(str(cut))]
    labelled = [SourceConfig(s.path, s.files, {"topic": "topic"}, name=s.name) for s in sources]
    splits, _ = load_sources(labelled, [TOPIC])
    texts = texts_of(splits)
    assert sum(text.startswith("only here") for text in texts["train"]) == 1
    assert "also in train" not in caplog.text


def test_overlap_of_own_splits_is_told_or_dropped(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        "train": str(write(numbered(20), "train.json")),
        "validation": str(write(numbered(30)[15:], "validation.json")),
        "test": str(write(numbered(40)[30:], "test.json")),
    }
    source = SourceConfig(files=files, labels={"topic": "topic"}, name="a")
    assert load_sources([source], [TOPIC])[0].num_rows == {"train": 20, "validation": 15, "test": 10}
    assert "Split 'validation': 5 of 15 rows have a text that is also in train; set `drop_overlap" in caplog.text
    splits, _ = load_sources([source], [TOPIC], drop_overlap=True)
    assert splits.num_rows == {"train": 20, "validation": 10, "test": 10}
    within = SourceConfig(files={**files, "test": files["train"]}, labels={"topic": "topic"}, name="a")
    with pytest.raises(ValueError, match=r"'test': 20 of 20 rows .* leaves none. Give another test split"):
        load_sources([within], [TOPIC], drop_overlap=True)


def test_too_few_texts_to_cut(write: WriteRows) -> None:
    with pytest.raises(ValueError, match=r"Source 'rows': split 'train' has 2 distinct texts, too few to cut"):
        load_texts(write(numbered(2)))


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (1.0, 0.0), (0.5, 0.5)])
def test_impossible_fractions(write: WriteRows, shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="each must be >= 0 and their sum < 1"):
        load_texts(write(numbered(9)), validation_fraction=shares[0], test_fraction=shares[1])


def test_without_train_tasks_must_be_complete(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    source = SourceConfig(files={"test": str(write(numbered(4)))}, labels={"topic": "topic"})
    splits, _ = load_sources([source], [TaskConfig("topic", labels=("x", "y"))])
    assert splits.num_rows == {"test": 4}
    assert "No source has a split 'train'" in caplog.text
    with pytest.raises(ValueError, match="has the class id 'x', but ids go from 0 to 1"):
        load_sources([source], [TaskConfig("topic", num_labels=2)])
    with pytest.raises(ValueError, match="Task 'topic' has no label in split 'train'"):
        load_sources([source], [TOPIC])


def test_split_column_errors(write: WriteRows, tmp_path: Path) -> None:
    rows = [{**row, "part": name} for row, name in zip(numbered(3), ["train", "eval", None], strict=True)]
    write(rows)
    source = SourceConfig(str(tmp_path / "rows.json"), labels={"topic": "topic"}, split_column="part")
    with pytest.raises(ValueError, match="'part' has 'eval' in row 1; 2 rows in all have no known split"):
        load_sources([source], [TOPIC])
    write(rows[2:])
    with pytest.raises(ValueError, match="'part' has None in row 0"):
        load_sources([source], [TOPIC])
    write(numbered(3))
    with pytest.raises(ValueError, match=r"Split column 'part' is not in .* \['text', 'topic'\]"):
        load_sources([source], [TOPIC])
    DatasetDict(dict.fromkeys(("train", "test"), Dataset.from_list(rows))).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "lists.json").write_text('[{"text": "a", "topic": "b", "part": ["train"]}]')
    lists = SourceConfig(str(tmp_path / "lists.json"), labels={"topic": "topic"}, split_column="part")
    with pytest.raises(ValueError, match="split column 'part' is list<.*>, but a split is a name"):
        load_sources([lists], [TOPIC])
    both = SourceConfig(str(tmp_path / "saved"), labels={"topic": "topic"}, split_column="part")
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\] and `split_column` 'part'"):
        load_sources([both], [TOPIC])

"""Rows of several texts, from the file to the batch: pairs encoded together, and texts encoded for themselves."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import assert_close
from conftest import UNCUT, MakeModel, WriteRows
from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from batching_mtl import Text, tokenize
from configuration_mtl import TaskConfig
from mtl.collation import MTLCollator
from mtl.data import SourceConfig, load_sources, row_texts, tokenize_splits
from tasks_mtl import CONTRASTIVE, IGNORE_INDEX, POSITIVE_PAIRS, REGRESSION, SCORED_PAIRS, TRIPLETS

ENTAILS = TaskConfig("entails")
NEAR = TaskConfig("near", SCORED_PAIRS)
FOUND = TaskConfig("found", POSITIVE_PAIRS)
THIRD = TaskConfig("third", TRIPLETS)

NLI: list[dict[str, Any]] = [
    {"premise": "match goal", "hypothesis": "goal", "entails": "yes"},
    {"premise": "match goal", "hypothesis": "price", "entails": "no"},
    {"premise": "price now", "hypothesis": "price", "entails": "yes"},
]
TRIPLES: list[dict[str, Any]] = [
    {"text": "price", "positive": "refund", "negative": "goal", "score": "0.5"},
    {"text": "goal", "positive": "match", "negative": "", "score": "-1"},
    {"text": "scene", "positive": None, "negative": "why", "score": None},
]


def load(
    rows: Sequence[dict[str, Any]], write: WriteRows, tasks: Sequence[TaskConfig], **settings: Any
) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    return load_sources([SourceConfig(str(write(rows)), **settings)], tasks, **UNCUT)


def nli(write: WriteRows, rows: Sequence[dict[str, Any]] = NLI, **settings: Any) -> DatasetDict:
    columns: dict[str, Any] = {"text": "premise", "text_pair": "hypothesis", "labels": {"entails": "entails"}}
    source = SourceConfig(str(write(rows, "nli.json")), **columns)
    return load_sources([source], [ENTAILS], **{**UNCUT, **settings})[0]


class TestPairs:
    def test_rows_hold_both_texts(self, write: WriteRows) -> None:
        train = nli(write)["train"]
        assert train["text_pair"][:] == ["goal", "price", "price"]
        assert row_texts(train[:2]) == [("match goal", "goal"), ("match goal", "price")]

    def test_tokens_are_those_of_the_tokenizer(
        self, write: WriteRows, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        splits, truncated = tokenize_splits(nli(write), tiny_tokenizer, max_length=32)
        assert splits["train"][0]["input_ids"] == tiny_tokenizer("match goal", "goal")["input_ids"]
        assert truncated == {"train": 0}
        assert "text_pair" not in splits["train"].column_names

    def test_the_longer_text_is_cut_first(self, write: WriteRows, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [{"premise": "match team goal actor scene plot", "hypothesis": "price", "entails": "yes"}, *NLI]
        splits, truncated = tokenize_splits(nli(write, rows), tiny_tokenizer, max_length=7)
        words = tiny_tokenizer.convert_ids_to_tokens(splits["train"][0]["input_ids"])
        assert words == ["[CLS]", "match", "team", "goal", "[SEP]", "price", "[SEP]"]
        assert truncated == {"train": 1}

    def test_token_types_of_a_tokenizer_that_has_them(self, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
        found = tokenize(tiny_tokenizer, ["price", ("price", "goal"), "why now"], return_token_type_ids=True)
        assert found["token_type_ids"] == [[0] * 3, [0, 0, 0, 1, 1], [0] * 4]
        assert found["input_ids"][2] == tiny_tokenizer("why now")["input_ids"]
        assert tokenize(tiny_tokenizer, []) == {}

    def test_room_for_the_special_tokens_of_a_pair(
        self, write: WriteRows, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(ValueError, match="max_length is 3 tokens, of which 3 are special ones"):
            tokenize_splits(nli(write), tiny_tokenizer, max_length=3)

    def test_sources_of_pairs_and_of_single_texts_mix(
        self, write: WriteRows, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        singles = SourceConfig(str(write([{"text": "goal", "v": 1.0}], "singles.json")), labels={"v": "v"})
        pairs = SourceConfig(
            str(write(NLI, "nli.json")), text="premise", text_pair="hypothesis", labels={"entails": "entails"}
        )
        splits, _ = load_sources([singles, pairs], [ENTAILS, TaskConfig("v", REGRESSION)], **UNCUT)
        assert row_texts(splits["train"][:]) == ["goal", *[(row["premise"], row["hypothesis"]) for row in NLI]]
        tokens = tokenize_splits(splits, tiny_tokenizer, max_length=32)[0]["train"]
        assert tokens[0]["input_ids"] == tiny_tokenizer("goal")["input_ids"]
        assert tokens[1]["input_ids"] == tiny_tokenizer("match goal", "goal")["input_ids"]

    def test_the_cache_knows_the_second_text(self, write: WriteRows, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
        first = tokenize_splits(nli(write), tiny_tokenizer, max_length=32)[0]["train"]
        other = [{**row, "hypothesis": "why"} for row in NLI]
        second = tokenize_splits(nli(write, other), tiny_tokenizer, max_length=32)[0]["train"]
        assert first[0]["input_ids"] != second[0]["input_ids"]
        # Two texts are no single text that reads the same.
        single = [{"text": row["premise"], "entails": row["entails"]} for row in NLI]
        alone, _ = load(single, write, [ENTAILS], labels={"entails": "entails"})
        third = tokenize_splits(alone, tiny_tokenizer, max_length=32)[0]["train"]
        assert third[0]["input_ids"] == tiny_tokenizer("match goal")["input_ids"]

    @pytest.mark.parametrize("column", ["premise", "hypothesis"])
    def test_a_missing_text_of_either_kind_is_told(self, column: str, write: WriteRows) -> None:
        rows = [*NLI, {**NLI[0], column: " "}]
        with pytest.raises(ValueError, match=f"column '{column}': 1 of 4 texts are missing.*first in rows .3."):
            nli(write, rows)
        assert len(nli(write, rows, drop_empty=True)["train"]) == 3

    def test_texts_of_another_type_and_absent_columns_are_told(self, write: WriteRows) -> None:
        with pytest.raises(ValueError, match=r"column 'hypothesis': a text must be a string.*Set `text_pair`"):
            nli(write, [{**row, "hypothesis": 3} for row in NLI])
        with pytest.raises(ValueError, match=r"Text column 'other' is not in .*Set `text_pair` in the source"):
            load(NLI, write, [ENTAILS], text="premise", text_pair="other", labels={"entails": "entails"})

    def test_overlap_goes_by_the_pair(self, write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
        test = [{"premise": "match goal", "hypothesis": "why", "entails": "no"}, NLI[1]]
        files = {"train": str(write(NLI, "train.json")), "test": str(write(test, "test.json"))}
        source = SourceConfig(files=files, text="premise", text_pair="hypothesis", labels={"entails": "entails"})
        with caplog.at_level(logging.WARNING):
            load_sources([source], [ENTAILS], **UNCUT)
        assert "1 of 2 rows have a text that is also in train" in caplog.text
        splits, _ = load_sources([source], [ENTAILS], drop_overlap=True, **UNCUT)
        assert row_texts(splits["test"][:]) == [("match goal", "why")]

    def test_cuts_go_by_the_pair(self, write: WriteRows) -> None:
        # One premise with 40 hypotheses, each row twice: by the premise alone nothing could be cut off.
        rows = [
            {"premise": "match", "hypothesis": f"goal {n % 40}", "entails": ("yes", "no")[n % 2]} for n in range(80)
        ]
        splits = nli(write, rows, validation_fraction=0.25)
        held = set(splits["validation"]["text_pair"])
        assert len(held) == 10
        assert len(splits["validation"]) == 20
        assert not held & set(splits["train"]["text_pair"])

    def test_predict_and_encode_take_pairs(self, make_model: MakeModel) -> None:
        model = make_model(tasks=[TaskConfig("entails", labels=("no", "yes"))])
        texts: list[Text] = ["price", ("match goal", "goal"), "why now", ("price", "a plain usual average scene")]
        embeddings = model.encode(texts, convert_to_tensor=True)
        for text, embedding in zip(texts, embeddings, strict=True):
            encoded = model.tokenizer(*(text if isinstance(text, tuple) else (text,)), return_tensors="pt")
            with torch.no_grad():
                output = model(**encoded)
            assert_close(embedding, output.embeddings[0])
            assert_close(model.encode([text], convert_to_tensor=True)[0], embedding)
        predicted = model.predict(texts)
        assert [list(prediction) for prediction in predicted] == [["entails"]] * 4
        alone = model.predict([texts[1]])[0]
        assert predicted[1]["entails"]["score"] == pytest.approx(alone["entails"]["score"], abs=1e-6)
        # Two strings in a tuple are two sentences, as they always were.
        assert model.encode(("price", "why now")).shape == (2, 32)

    def test_a_pair_of_long_texts_is_cut_as_in_training(self, make_model: MakeModel) -> None:
        model = make_model(tasks=[TaskConfig("entails", labels=("no", "yes"))], max_seq_length=7)
        long = model.encode([("match team goal actor scene plot", "price")], convert_to_tensor=True)
        assert_close(long, model.encode([("match team goal", "price")], convert_to_tensor=True))


class TestFurtherTexts:
    def test_labels_and_columns(self, write: WriteRows) -> None:
        splits, _ = load(
            TRIPLES,
            write,
            [NEAR, FOUND, THIRD],
            compare_with=["positive", "negative"],
            labels={"near": "score"},
            pairs=["found", "third"],
        )
        train = splits["train"][:]
        assert train["further_1"] == ["refund", "match", None]
        assert train["further_2"] == ["goal", None, "why"]
        assert train["label_found"] == [1, 1, IGNORE_INDEX]
        assert train["label_third"] == [1, IGNORE_INDEX, IGNORE_INDEX]
        assert train["label_near"][:2] == [0.5, -1.0]

    def test_rows_of_other_sources_are_missing(self, write: WriteRows) -> None:
        tasks = [TaskConfig("topic"), FOUND, NEAR]
        topics = [{"text": "goal", "topic": "sport"}, {"text": "plot", "topic": "film"}]
        found = SourceConfig(
            str(write(TRIPLES[:2], "found.json")), compare_with="positive", pairs="found", labels={"near": "score"}
        )
        plain = SourceConfig(str(write(topics, "topics.json")), labels={"topic": "topic"})
        splits, _ = load_sources([plain, found], tasks, **UNCUT)
        train = splits["train"][:]
        assert train["label_found"] == [IGNORE_INDEX, IGNORE_INDEX, 1, 1]
        assert train["label_topic"] == [1, 0, IGNORE_INDEX, IGNORE_INDEX]
        assert train["further_1"] == [None, None, "refund", "match"]
        assert "further_2" not in train

    def test_from_tokens_to_the_batch(self, write: WriteRows, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
        tasks = [FOUND, THIRD]
        splits, _ = load(TRIPLES, write, tasks, compare_with=["positive", "negative"], pairs=["found", "third"])
        tokens, truncated = tokenize_splits(splits, tiny_tokenizer, max_length=3)
        rows = list(tokens["train"])
        assert rows[1]["further_2_input_ids"] == []
        assert rows[0]["length"] == max(len(rows[0][name]) for name in rows[0] if name.endswith("input_ids"))
        assert truncated["train"] == sum(
            len(tiny_tokenizer(text)["input_ids"]) > 3
            for row in TRIPLES
            for text in (row["text"], row["positive"], row["negative"])
            if text
        )
        batch = MTLCollator(tiny_tokenizer, tasks)(rows)
        assert list(batch) == ["input_ids", "attention_mask", "labels", "others", "partners"]
        assert batch["partners"].tolist() == [[0, 1], [2, -1], [-1, 3]]
        assert batch["others"]["input_ids"].shape[0] == 4
        assert batch["others"]["input_ids"][3].tolist() == rows[2]["further_2_input_ids"]
        assert batch["partners"].dtype == batch["others"]["attention_mask"].dtype == torch.int64

    def test_many_rows_without_a_text_stand_first(
        self, write: WriteRows, tiny_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = [{"text": "goal", "positive": None}] * 1200 + [{"text": "goal", "positive": "match"}]
        splits, _ = load(rows, write, [FOUND], compare_with=["positive"], pairs=["found"])
        tokens = tokenize_splits(splits, tiny_tokenizer, max_length=16)[0]["train"]
        assert tokens[1200]["further_1_input_ids"] == tiny_tokenizer("match")["input_ids"]

    def test_batches_hold_others_only_where_a_task_compares(self, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
        examples = [{"input_ids": [2, 7, 3], "further_1_input_ids": [2, 3], "label_space": 1}]
        batch = MTLCollator(tiny_tokenizer, [TaskConfig("space", CONTRASTIVE, num_labels=2)])(examples)
        assert list(batch) == ["input_ids", "attention_mask", "labels"]
        assert batch["labels"]["space"].tolist() == [1]

    def test_classes_of_a_contrastive_task_come_from_the_data(self, write: WriteRows) -> None:
        labels = {"goal": "sport", "plot": "film", "why": None}
        rows: list[dict[str, Any]] = [{"text": text, "topic": topic} for text, topic in labels.items()]
        tasks = [TaskConfig("topic"), TaskConfig("space", CONTRASTIVE)]
        splits, (topic, space) = load(rows, write, tasks, labels={"topic": "topic", "space": "topic"})
        assert space.labels == topic.labels == ("film", "sport")
        assert splits["train"]["label_space"][:] == [1, 0, IGNORE_INDEX]

    def test_scores_are_checked(self, write: WriteRows) -> None:
        settings: dict[str, Any] = {"compare_with": ["positive"], "labels": {"near": "score"}}
        five = [{**row, "score": "4.5"} for row in TRIPLES[:2]]
        with pytest.raises(
            ValueError, match=r"row 0 .*has the score 4.5, but loss 'cosine' takes scores in \[-1, 1\]"
        ):
            load(five, write, [TaskConfig("near", SCORED_PAIRS, loss="cosine")], **settings)
        assert load(five, write, [NEAR], **settings)[0]["train"]["label_near"][:] == [4.5, 4.5]
        with pytest.raises(ValueError, match="row 2 .*has a score, but column 'positive' no text to compare with"):
            load([*TRIPLES[:2], {**TRIPLES[2], "score": "1"}], write, [NEAR], **settings)

    @pytest.mark.parametrize(
        ("tasks", "settings", "message"),
        [
            ([NEAR], {"labels": {"near": "score"}}, r"needs 1 further texts a row, but `compare_with` is \[\]"),
            ([THIRD], {"pairs": ["third"], "compare_with": ["positive"]}, "'third' .triplets. needs 2 further texts"),
            ([NEAR], {"pairs": ["near"], "compare_with": ["positive"]}, "scored_pairs and stands under `pairs`. List"),
            (
                [FOUND],
                {"labels": {"found": "score"}, "compare_with": ["positive"]},
                "stands under `labels`. List it in",
            ),
            ([FOUND], {"pairs": ["lost"], "compare_with": ["positive"]}, r"`pairs` has \['lost'\], but the tasks are"),
            (
                [NEAR],
                {"labels": {"near": "score"}, "compare_with": ["positive", "negative"]},
                r"no task uses \['negative'\] of `compare_with`",
            ),
            ([FOUND], {"pairs": ["found"], "compare_with": ["lost"]}, "Text column 'lost' is not in .*`compare_with`"),
        ],
    )
    def test_sources_that_do_not_fit_the_tasks(
        self, tasks: list[TaskConfig], settings: dict[str, Any], message: str, write: WriteRows
    ) -> None:
        with pytest.raises(ValueError, match=message):
            load(TRIPLES, write, tasks, **settings)

    def test_a_task_that_no_source_names(self, write: WriteRows) -> None:
        with pytest.raises(ValueError, match="Task 'found' has no rows in any source .*Set `pairs` in one"):
            load(TRIPLES, write, [NEAR, FOUND], compare_with=["positive"], labels={"near": "score"})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"compare_with": ["a", "b", "c"]}, "at most 2 in `compare_with`"),
            ({"compare_with": ["text"]}, "Give each once"),
            ({"text_pair": "text"}, "Give each once"),
            ({"text_pair": "a", "compare_with": ["b"]}, "`text_pair` is encoded together with the text"),
            ({"pairs": ["found"]}, r"`pairs` \['found'\] needs `compare_with`"),
            ({"compare_with": [3]}, r"`compare_with` must be a list of names, found \[3\]"),
            ({"pairs": {"found": True}}, "`pairs` must be a list of names"),
        ],
    )
    def test_settings_of_a_source_are_checked(self, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            SourceConfig(str(tmp_path / "rows.json"), **settings)

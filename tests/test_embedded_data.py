"""The embedded corpus against its card: the figures are read from the card, so it cannot go stale."""

import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

FOLDER = Path(__file__).parents[1] / "data" / "vader"
SPLITS = ["train", "validation", "test"]
TOPICS = ["tweet", "movie_review", "product_review", "news_editorial"]
SENTIMENTS = ["negative", "neutral", "positive"]

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return pq.read_table(FOLDER / "vader.parquet").to_pylist()


@pytest.fixture(scope="module")
def card() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def table(card: str, corner: str) -> dict[str, dict[str, str]]:
    """Reads the card's table whose first heading is `corner`, as {row: {column: figure}}, without ` and commas."""
    lines = card[card.index(f"| {corner} |") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip().strip("`").replace(",", "") for cell in line.strip("|").split("|")] for line in lines]
    return {line[0].replace("`", ""): dict(zip(cells[0][1:], line[1:], strict=True)) for line in cells[2:]}


def measure(rows: Rows) -> dict[str, str]:
    """Measures what the card's table of counts says of one part of the rows, in the table's order and format."""
    figures = {"rows": str(len(rows)), "documents": str(len({row["document"] for row in rows}))}
    for column, values in (("topic", TOPICS), ("sentiment", SENTIMENTS)):
        counts = Counter(row[column] for row in rows)
        figures |= {f"{column} {value}": str(counts[value]) for value in values}
    valences = [row["valence"] for row in rows]
    lengths = [len(row["text"]) for row in rows]  # characters
    return figures | {
        "valence mean": f"{statistics.fmean(valences):.4f}",
        "valence deviation": f"{statistics.pstdev(valences):.4f}",
        "valence minimum": f"{min(valences):.4f}",
        "valence maximum": f"{max(valences):.4f}",
        "length minimum": str(min(lengths)),
        "length median": f"{statistics.median(lengths):.0f}",
        "length mean": f"{statistics.fmean(lengths):.1f}",
        "length maximum": str(max(lengths)),
    }


def test_counts_are_the_cards(rows: Rows, card: str) -> None:
    said = table(card, "Measure")
    parts = {split: [row for row in rows if row["split"] == split] for split in SPLITS} | {"all": rows}
    for part, members in parts.items():
        assert measure(members) == {name: figures[part] for name, figures in said.items()}, part


def test_sentiment_by_topic_is_the_cards(rows: Rows, card: str) -> None:
    counts = Counter((row["topic"], row["sentiment"]) for row in rows)
    valences = defaultdict(list)
    for row in rows:
        valences[row["topic"]].append(row["valence"])
    measured = {
        topic: {
            **{sentiment: str(counts[topic, sentiment]) for sentiment in SENTIMENTS},
            "mean": f"{statistics.fmean(valences[topic]):.4f}",
            "deviation": f"{statistics.pstdev(valences[topic]):.4f}",
        }
        for topic in TOPICS
    }
    assert measured == table(card.split("## Counts")[1], "Topic")
    for topic, said in (("movie_review", r"rarely neutral \((\d+) %\)"), ("news_editorial", r"often \((\d+) %\)")):
        share = counts[topic, "neutral"] / len(valences[topic])
        assert re.findall(said, card) == [f"{share:.0%}".rstrip("%")]


def test_near_copies_across_splits_are_the_cards(rows: Rows, card: str) -> None:
    folded = [re.sub(r"[\W_]+", " ", row["text"].lower()).strip() for row in rows]
    in_train = {text for text, row in zip(folded, rows, strict=True) if row["split"] == "train"}
    repeats = Counter(row["split"] for text, row in zip(folded, rows, strict=True) if text in in_train)
    said = re.findall(r"(\d+) test and (\d+) validation rows repeat a train row", " ".join(card.split()))
    assert said == [(str(repeats["test"]), str(repeats["validation"]))]


def test_columns_are_the_cards(card: str) -> None:
    schema = pa.schema(pq.read_schema(FOLDER / "vader.parquet"), metadata={})
    types = {field.name: str(field.type).replace("large_", "").replace("double", "float64") for field in schema}
    assert types == {name: cells["Type"] for name, cells in table(card, "Column").items()}


def test_no_document_is_in_two_splits(rows: Rows) -> None:
    splits = defaultdict(set)
    for row in rows:
        splits[row["document"]].add(row["split"])
    assert [document for document, found in splits.items() if len(found) > 1] == []


def test_document_names_its_topic(rows: Rows) -> None:
    assert all(re.fullmatch(rf"{row['topic']}/\d+", row["document"]) for row in rows)


def test_sentiment_follows_valence(rows: Rows) -> None:
    for row in rows:
        valence = row["valence"]
        expected = "negative" if valence <= -0.5 else "positive" if valence >= 0.5 else "neutral"
        assert row["sentiment"] == expected, row
        assert -4 <= valence <= 4, row


def test_texts_are_clean_and_unique(rows: Rows) -> None:
    assert all(row["text"] and row["text"] == " ".join(row["text"].split()) for row in rows)
    assert [text for text, count in Counter(row["text"].lower() for row in rows).items() if count > 1] == []
    assert sum("&amp;" in row["text"] for row in rows) == 8
    handles = Counter(handle for row in rows for handle in re.findall(r"@\w+", row["text"]) if row["topic"] == "tweet")
    assert handles.keys() == {"@anonymous"}


def test_front_matter_loads_the_file(card: str, tmp_path: Path) -> None:
    data = DatasetCard(card).data.to_dict()
    assert (data["license"], data["language"], data["size_categories"]) == ("mit", ["en"], ["10K<n<100K"])
    loaded = load_dataset(str(FOLDER), cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in loaded.items()} == {"full": int(table(card, "Measure")["rows"]["all"])}


def test_licence_is_there(card: str) -> None:
    licence = (FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert "Copyright (c) 2016 C.J. Hutto" in licence
    assert "The above copyright notice and this permission notice shall be included" in licence
    assert "[LICENSE](LICENSE)" in card

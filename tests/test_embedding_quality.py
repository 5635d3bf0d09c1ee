"""The embedding before and after training: figures, map, scored pairs and advice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from datasets import Dataset
from torch.nn import functional as F

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl import embedding_quality as module
from mtl.data import SourceConfig, load_sources
from mtl.embedding_advice import embedding_advice
from mtl.embedding_geometry import class_alignment, neighbour_purity, uniformity
from mtl.embedding_quality import embedding_quality
from mtl.scored_pairs import ScoredPairs, pairs_of_tasks, read_scored_pairs

TEXTS = [
    f"{first} {second} {number}" for number in range(5) for first, second in (("match", "goal"), ("actor", "plot"))
]
TASKS = (TaskConfig("topic", labels=("sport", "film")), TaskConfig("valence", "regression"))
PAIRS = ScoredPairs("near", TEXTS[:4], TEXTS[4:8], np.array([3.0, 1.0, 2.0, 0.0]))


def rows_of(texts: list[str] = TEXTS) -> Dataset:
    """Returns rows of which the first has no topic, and the second one of no class."""
    topics = [-100, -1, *(number % 2 for number in range(2, len(texts)))]
    return Dataset.from_dict({"text": texts, "label_topic": topics, "label_valence": [0.0] * len(texts)})


def moved(model: MTLModel, seed: int = 3) -> MTLModel:
    """Returns the model with other embeddings of words."""
    table = model.backbone.get_parameter("embeddings.word_embeddings.weight")
    with torch.no_grad():
        table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def test_figures_are_those_of_the_unit_embeddings_before_and_after(make_model: MakeModel) -> None:
    before, after = make_model(tasks=TASKS, normalize=False), moved(make_model(tasks=TASKS, normalize=False))
    quality = embedding_quality(before, after, rows_of(), TASKS, pairs=PAIRS)
    assert json.loads(json.dumps(quality, allow_nan=False)) == quality
    classes = np.array(rows_of()["label_topic"][2:])
    for key, model in (("before", before), ("after", after)):
        units = F.normalize(model.encode(TEXTS, convert_to_tensor=True), dim=-1).numpy()
        figures = quality[key]
        purity = neighbour_purity(units[2:], classes)
        assert figures["rows"] == 10
        assert figures["purity"] == {
            "topic": {"value": pytest.approx(purity.value), "chance": purity.chance, "neighbours": 7, "rows": 8}
        }
        # 1e-5 of float32 sums in batches of another order.
        assert figures["alignment"] == {"topic": pytest.approx(class_alignment(units[2:], classes), abs=1e-5)}
        assert figures["uniformity"] == pytest.approx(uniformity(units), abs=1e-5)
        cosines = [float(units[a] @ units[a + 4]) for a in range(4)]
        ranks = [sorted(some).index(value) for some in (cosines, PAIRS.scores.tolist()) for value in some]
        by_hand = 1 - 6 * sum((a - b) ** 2 for a, b in zip(ranks[:4], ranks[4:], strict=True)) / (4 * 15)
        assert figures["similarity"] == {"spearman": pytest.approx(by_hand), "pairs": 4, "name": "near"}
    assert quality["before"] != quality["after"]
    assert quality["advice"].startswith("Spearman on near")


def test_map_shows_rows_of_the_split(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAP_POINTS", 6)
    rows = rows_of([*TEXTS[:-1], "goal " * 100])
    found = embedding_quality(None, make_model(tasks=TASKS), rows, TASKS)
    assert found["before"] is None
    assert found["advice"] == "The embedding was not compared with that of the encoder before training."
    shown = found["map"]
    assert shown["method"] == "pca"
    assert sum(shown["explained"]) <= 1.0
    assert len(set(shown["rows"])) == len(shown["points"]) == 6
    assert shown["tasks"].keys() == {"topic"}  # A number is no colour of a class.
    assert shown["tasks"]["topic"]["labels"] == ["sport", "film"]
    for row, text, label in zip(shown["rows"], shown["texts"], shown["tasks"]["topic"]["of_point"], strict=True):
        assert rows[row]["text"][:199] == text.removesuffix("…")
        assert len(text) <= 200
        assert label == (row % 2 if row > 1 else -1)
    assert shown == embedding_quality(None, make_model(tasks=TASKS), rows, TASKS)["map"]


def test_rows_are_drawn_where_there_are_more(make_model: MakeModel) -> None:
    model = make_model(tasks=TASKS)
    found = [embedding_quality(None, model, rows_of(), TASKS, max_rows=4, seed=seed) for seed in (0, 0, 1)]
    assert found[0]["after"]["rows"] == 4
    assert found[0] == found[1]
    assert found[0]["map"]["rows"] != found[2]["map"]["rows"]


@pytest.mark.parametrize("is_another", [False, True])
def test_encoder_that_did_not_change_is_measured_once(
    is_another: bool, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tasks=TASKS)
    before = make_model(tasks=TASKS) if is_another else model  # With other heads, and the same encoder.
    encoded: list[MTLModel] = []
    encode = MTLModel.encode

    def watched(self: MTLModel, *args: Any, **kwargs: Any) -> Any:
        encoded.append(self)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(MTLModel, "encode", watched)
    found = embedding_quality(before, model, rows_of(), TASKS)
    assert found["before"] == found["after"]
    assert encoded == [model]
    assert found["advice"] == "The encoder is the one that training began with, and so is its embedding."
    encoded.clear()
    embedding_quality(make_model(tasks=TASKS, pooling="cls"), model, rows_of(), TASKS)
    assert len(encoded) == 2
    embedding_quality(make_model(tasks=TASKS, max_seq_length=4), model, rows_of(), TASKS)
    assert len(encoded) == 4


def test_pairs_and_positives_of_the_split(make_model: MakeModel, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    cells = [{"text": TEXTS[row], "other": TEXTS[row + 4] if row else None, "score": row or None} for row in range(5)]
    file.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    tasks = [TaskConfig("near", "scored_pairs"), TaskConfig("answers", "positive_pairs")]
    source = SourceConfig(str(file), compare_with=["other"], labels={"near": "score"}, pairs=["answers"])
    splits, resolved = load_sources([source], tasks, validation_fraction=0.0, test_fraction=0.0)
    model = make_model(tasks=[*resolved, *TASKS])
    figures = embedding_quality(None, model, splits["train"], resolved)["after"]
    assert (figures["similarity"]["name"], figures["similarity"]["pairs"]) == ("near", 4)
    units = model.encode(TEXTS)
    expected = np.mean([np.square(units[row] - units[row + 4]).sum() for row in range(1, 5)])
    assert figures["alignment"] == {"answers": pytest.approx(float(expected), abs=1e-5)}
    assert figures["purity"] == {}
    assert pairs_of_tasks(splits["train"], resolved[1:]) is None


def test_split_without_labels_of_a_task(make_model: MakeModel) -> None:
    tasks = (*TASKS, TaskConfig("kept", num_labels=2))  # Of a model that has more tasks than the data.
    rows = rows_of().remove_columns("label_topic").add_column("label_topic", [-100] * 10)
    figures = embedding_quality(None, make_model(tasks=tasks), rows, tasks)["after"]
    assert figures["purity"] == {"topic": {"value": None, "chance": None, "neighbours": 0, "rows": 0}}
    assert figures["alignment"] == {"topic": None}
    assert figures["similarity"] is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_scored_pairs_of_a_file(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"sts{suffix}"
    cells = [("a cat", "a dog", 2.5), ("a cat", "the cat", 4), ("b", "c", None)]
    if suffix == ".csv":
        lines = ["sentence1,sentence2,score,other", *(f"{a},{b},{'' if c is None else c},x" for a, b, c in cells)]
    else:
        lines = [json.dumps({"sentence1": a, "sentence2": b, "score": c}) for a, b, c in cells]
    file.write_text("\n".join(lines) + "\n")
    pairs = read_scored_pairs(file)
    assert (pairs.name, pairs.first, pairs.second) == ("sts", ["a cat", "a cat"], ["a dog", "the cat"])
    assert pairs.scores.tolist() == [2.5, 4.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence1,sentence2\na,b\n", "Scored pairs '.*sts.csv': .*column 'score' .* They need the columns"),
        ("sentence1,sentence2,score\na,b,near\n", "Scored pairs .* 'near'.* a number in the last"),
        ("sentence1,sentence2,score\na,,1\n", "column 'sentence2' no text"),
    ],
)
def test_scored_pairs_that_are_none(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "sts.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_scored_pairs(file)
    with pytest.raises(FileNotFoundError):
        read_scored_pairs(tmp_path / "none.csv")


def figures_of(spearman: float | None, *, uniformity: float = -3.5, purity: float = 0.7, pairs: int = 10_000) -> Any:
    similarity = None if spearman is None else {"spearman": spearman, "pairs": pairs, "name": "sts"}
    nearest = {"topic": {"value": purity, "chance": 0.3, "neighbours": 10, "rows": 100}}
    return {"similarity": similarity, "purity": nearest, "uniformity": uniformity, "alignment": {}, "rows": 100}


@pytest.mark.parametrize(
    ("before", "after", "said", "unsaid"),
    [
        (figures_of(0.82), figures_of(0.41), "fell from 0.82 to 0.41 (10,000 pairs): search .* suffer. Set", "rose"),
        (figures_of(0.82), figures_of(0.769), "fell from 0.82 to 0.77", "rose"),
        (figures_of(0.82), figures_of(0.771), "a change of less than 0.05: search should do as it did", "Set"),
        (figures_of(0.70), figures_of(0.76), "rose from 0.70 to 0.76 .* should gain", "Set"),
        # Of 100 pairs twice the standard error is 0.2.
        (figures_of(0.8, pairs=100), figures_of(0.65, pairs=100), "a change of less than 0.20", "fell"),
        (figures_of(0.8, pairs=100), figures_of(0.55, pairs=100), "fell from 0.80 to 0.55", "change"),
        (figures_of(0.8), figures_of(0.81, purity=0.6), "less often share their label of topic (0.70 before", "Set"),
        (figures_of(0.8), figures_of(0.81, purity=0.66), "search should do as it did.$", "less often"),
        (
            figures_of(None),
            figures_of(None, uniformity=-2.9),
            "crowd together: uniformity .* to -2.90, where",
            "spread",
        ),
        (figures_of(None), figures_of(None, uniformity=-3.1), "as spread out as before: .* -3.10. Scored", "crowd"),
    ],
)
def test_advice(before: Any, after: Any, said: str, unsaid: str) -> None:
    advice = embedding_advice(before, after)
    assert all(part.strip().removesuffix("$") in advice for part in said.split(".*"))
    assert unsaid not in advice
    assert advice.endswith(".")


def test_advice_without_figures() -> None:
    undefined = {**figures_of(None), "uniformity": None, "rows": 1}
    assert embedding_advice(undefined, figures_of(None)).startswith("Scored pairs (`similarity_pairs`) would tell")
    diverged = embedding_advice(figures_of(None), undefined)
    assert diverged.startswith("The embedding after training has no uniformity")
    broken = figures_of(0.5)
    broken["similarity"]["spearman"] = None
    assert embedding_advice(figures_of(0.5), broken).startswith("Embeddings are about as spread out as before")

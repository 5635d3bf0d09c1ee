"""What a run shows on the terminal: lines of the log, and samples of what the model says."""

import pytest
from conftest import TOPICS, MakeModel
from transformers import TrainerState

from configuration_mtl import TaskConfig
from mtl.console import ProgressReport, sample_lines, sample_truths, shown
from mtl.sources import SourceConfig
from tasks_mtl import REGRESSION, SCORED_PAIRS

TOPIC, SENTIMENT = TaskConfig("topic", labels=tuple(TOPICS)), TaskConfig("sentiment", labels=("bad", "good"))


class _Bar:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


def test_line_of_a_step_names_every_loss() -> None:
    report = ProgressReport([TOPIC, SENTIMENT])
    bar = _Bar()
    report.training_bar = bar  # type: ignore[assignment]  # A bar of tqdm, of which it takes `write`.
    state = TrainerState(max_steps=10, global_step=3)
    logs = {
        "loss": 2.0, "loss_topic": 1.5, "teacher_loss_topic": 5.25, "loss_sentiment": 0.5, "loss_preservation": 0.125,
        "epoch": 0.5, "learning_rate": 1e-3,
    }  # fmt: skip
    report.on_log(None, state, None, logs)  # type: ignore[arg-type]  # It reads neither.
    assert bar.lines == [
        "step 3/10  epoch 0.50  loss 2.0000 (topic 1.5000, sentiment 0.5000, topic teacher 5.2500, preservation "
        "0.1250)  lr 1.00e-03"
    ]


def test_samples_show_what_their_rows_are_for(tiny_model: MakeModel) -> None:
    near = TaskConfig("near", SCORED_PAIRS)
    model = tiny_model(tasks=[TOPIC, SENTIMENT, near]).eval()
    sources = [
        SourceConfig("a.csv", name="pairs", text_pair="second", labels={"topic": "y"}),
        SourceConfig("b.csv", name="near", compare_with="second", labels={"near": "y"}),
        SourceConfig("c.csv", name="single", labels={"sentiment": "y"}),
    ]
    missing = {"text_pair": None, "further_1": None, "label_topic": -100, "label_sentiment": -100}
    rows = [
        {**missing, "text": "match goal", "text_pair": "team", "label_topic": 0, "source": "pairs"},
        {**missing, "text": "scene", "further_1": "plot", "source": "near"},
        {**missing, "text": "price", "source": "single"},  # Its label is missing, and it is of a source that has one.
        {**missing, "text": "order", "label_topic": 2, "source": "single"},  # As where a teacher has decided.
    ]
    truths = sample_truths(rows, model.config.tasks[:2], sources)
    assert truths == [{"topic": "sport"}, {}, {"sentiment": "-"}, {"sentiment": "-", "topic": "shop"}]
    lines = sample_lines(model, rows, truths).splitlines()
    assert [line.split()[0] for line in lines] == [
        "input", "topic", "input", "cosine", "input", "sentiment", "input", "topic", "sentiment"
    ]  # fmt: skip
    assert lines[0] == "  input      match goal / team"
    pair = model.predict([("match goal", "team")])[0]["topic"]
    assert lines[1] == f"    topic          predicted {pair['label']} ({pair['score']:.2f}), true sport"
    first, second = model.encode(["scene", "plot"])
    assert float(lines[3].split()[1]) == pytest.approx(float(first @ second), abs=5e-4)
    assert lines[3].endswith(" with plot")
    assert sample_lines(model, [], []) == ""


def test_predictions_as_text() -> None:
    prediction = {"label": "bad", "score": 0.456, "probabilities": {"bad": 0.456, "good": 0.544}}
    assert shown(SENTIMENT, prediction) == "bad (0.46)"
    assert shown(SENTIMENT, prediction | {"abstains": False}) == "bad (0.46)"
    assert shown(SENTIMENT, prediction | {"abstains": True}) == "bad (0.46, abstains)"
    assert shown(TaskConfig("one", REGRESSION), 0.456) == "0.46"
    assert shown(TaskConfig("two", REGRESSION, labels=("x", "y")), {"x": 0.456, "y": -1.0}) == "x 0.46, y -1.00"

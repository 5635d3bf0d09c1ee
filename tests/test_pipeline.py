"""The pipeline of a saved model: what `predict` says, for every kind of input, from the folder or the Hub alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SENTENCES, MakeModel
from datasets import Dataset
from fresh_process import offline_env, run_fresh
from hub_stand_in import HubStandIn, hub_env
from saved_folders import ROOT, SAVED_FILES, names
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset, KeyPairDataset

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from pipeline_mtl import PIPELINE_TASK, MTLPipeline
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION

PAIR = ("match team goal", "price of the order")
TASKS = (
    TaskConfig("topic", labels=("sport", "film", "shop"), calibration_temperature=1.5, out_of_scope_label="none",
               rejection_threshold=1.2, abstention_threshold=0.4),
    TaskConfig("tags", MULTI_LABEL, labels=("now", "why", "thanks"), label_thresholds=(0.4, 0.5, 0.6)),
    TaskConfig("rank", ORDINAL, labels=("low", "middle", "high")),
    TaskConfig("valence", REGRESSION),
    TaskConfig("moods", REGRESSION, labels=("joy", "fear")),
    TaskConfig("near", "scored_pairs"),
)  # fmt: skip


@pytest.fixture
def model(make_model: MakeModel) -> MTLModel:
    """Gives a model with a task of every kind, some with thresholds."""
    return make_model(tasks=TASKS).eval()


@pytest.fixture
def pipe(model: MTLModel) -> MTLPipeline:
    """Gives the pipeline of the model, as it is in memory."""
    return MTLPipeline(model)


def named_pipeline(model: Any, **options: Any) -> Any:
    """Returns the pipeline that the library finds by its name."""
    make: Any = pipeline
    return make(PIPELINE_TASK, model=model, **options)


def assert_says(found: Any, expected: Any) -> None:
    """Asserts that answers are equal, numbers to the rounding of float32 sums in another order."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_says(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_says(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected)


def test_one_sentence_gives_a_dict_and_a_list_a_list(pipe: MTLPipeline, model: MTLModel) -> None:
    assert_says(pipe("match team goal now"), model.predict("match team goal now"))
    assert_says(pipe(""), model.predict(""))
    assert_says(pipe(SENTENCES[:1]), model.predict(SENTENCES[:1]))
    assert pipe([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_say_what_predict_says(batch_size: int, pipe: MTLPipeline, model: MTLModel) -> None:
    texts: list[Any] = [*SENTENCES, PAIR, "", "price " * 100]
    assert_says(pipe(texts, batch_size=batch_size), model.predict(texts))


def test_batch_goes_through_the_encoder_at_once(
    pipe: MTLPipeline, model: MTLModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    forward = model.forward

    def note(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", note)
    MTLPipeline(model, batch_size=3)(SENTENCES)
    assert sizes == [3, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_side_of_the_tokenizer(side: str, make_model: MakeModel) -> None:
    model = make_model(pooling="cls").eval()
    model.tokenizer.padding_side = side
    assert_says(MTLPipeline(model)(SENTENCES, batch_size=4), model.predict(SENTENCES))


def test_pair_is_a_tuple_or_a_dict(pipe: MTLPipeline, model: MTLModel) -> None:
    (expected,) = model.predict([PAIR])
    as_dict = {"text": PAIR[0], "text_pair": PAIR[1]}
    for given in (PAIR, as_dict):
        assert_says(pipe(given), expected)
        assert_says(pipe([given, "price"]), [expected, model.predict("price")])
    assert_says(pipe({"text": "price"}), model.predict("price"))
    assert_says(pipe({"text": "price", "text_pair": None}), model.predict("price"))


def test_generator_is_answered_while_it_is_read(pipe: MTLPipeline, model: MTLModel) -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(len(taken))
            yield SENTENCES[taken[-1] % len(SENTENCES)]

    answers = iter(pipe(endless(), batch_size=2))
    assert_says([next(answers) for _ in range(3)], model.predict(SENTENCES[:3]))
    assert len(taken) < 8
    assert_says(list(pipe(iter(SENTENCES))), model.predict(SENTENCES))


def test_columns_and_data_sets_are_taken(pipe: MTLPipeline, model: MTLModel) -> None:
    rows = Dataset.from_dict({"text": SENTENCES, "other": SENTENCES[::-1]})
    expected = model.predict(SENTENCES)
    assert_says(list(pipe(KeyDataset(rows, "text"), batch_size=2)), expected)
    assert_says(pipe(rows["text"]), expected)
    assert_says(pipe(np.array(SENTENCES)), expected)
    pairs = list(zip(SENTENCES, SENTENCES[::-1], strict=True))
    assert_says(list(pipe(KeyPairDataset(rows, "text", "other"), batch_size=3)), model.predict(pairs))
    assert list(pipe(KeyDataset(rows.select([]), "text"))) == []


def test_tasks_are_chosen(pipe: MTLPipeline, model: MTLModel) -> None:
    expected = model.predict("price")
    for tasks in (["valence", "topic"], ("topic", "valence")):
        # In the order of the model, as `predict` has them.
        assert_says(pipe("price", tasks=tasks), {name: expected[name] for name in ("topic", "valence")})
    one = MTLPipeline(model, tasks="rank")
    assert_says(one("price"), {"rank": expected["rank"]})
    assert_says(one("price", tasks=["tags"]), {"tags": expected["tags"]})


def test_largest_probabilities_come_first(pipe: MTLPipeline, model: MTLModel) -> None:
    expected, found = model.predict("price"), pipe("price", top_k=2)
    for name in ("topic", "tags", "rank"):
        probabilities = expected[name].pop("probabilities")
        kept = found[name].pop("probabilities")
        assert list(kept) == sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:2]
        assert_says(kept, {label: probabilities[label] for label in kept})
    assert_says(found, expected)
    assert_says(MTLPipeline(model, top_k=1)("price", top_k=None), model.predict("price"))


def test_embeddings_come_from_the_same_pass(pipe: MTLPipeline, model: MTLModel) -> None:
    answers = pipe(SENTENCES, return_embeddings=True, batch_size=3)
    np.testing.assert_allclose([answer["embedding"] for answer in answers], model.encode(SENTENCES), atol=1e-6)
    assert answers[0]["embedding"].dtype == np.float32
    assert_says([answer["predictions"] for answer in answers], model.predict(SENTENCES))


def test_model_without_heads_gives_embeddings(make_model: MakeModel) -> None:
    model = make_model(tasks=[TASKS[-1]]).eval()
    (answer,) = MTLPipeline(model)(["price"], return_embeddings=True)
    assert answer["predictions"] == {}
    np.testing.assert_allclose(answer["embedding"], model.encode("price"), atol=1e-6)


def test_model_in_memory_is_found_by_name_and_evaluates(model: MTLModel) -> None:
    expected = model.predict(SENTENCES)
    pipe = named_pipeline(model.train())
    assert isinstance(pipe, MTLPipeline)
    assert not model.training
    assert_says(pipe(SENTENCES), expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"tasks": ["sport"]}, KeyError, r"No task 'sport'; the model has \['topic', "),
        ({"tasks": "near"}, ValueError, "Task 'near' has no head, so it predicts nothing"),
        ({"top_k": 0}, ValueError, "top_k must be an int of at least 1, or None for all, found 0"),
        ({"function_to_apply": "none"}, TypeError, r"no option 'function_to_apply'. It has \['tasks', 'top_k', "),
    ],
)
def test_wrong_options_are_told(
    options: dict[str, Any], kind: type[Exception], message: str, pipe: MTLPipeline, model: MTLModel
) -> None:
    with pytest.raises(kind, match=message):
        pipe("price", **options)
    with pytest.raises(kind, match=message):
        MTLPipeline(model, **options)


@pytest.mark.parametrize(
    "given",
    [3, ["price", None], [("a", "b", "c")], {"sentence": "a"}, [{"text": "a", "label": 1}], [["a", "b"]], ("a",)],
)
def test_what_is_no_text_is_told(given: Any, pipe: MTLPipeline) -> None:
    with pytest.raises(TypeError, match=r"Expected a sentence, a pair as a tuple of two strings, or a dict"):
        pipe(given)


def test_table_is_told(pipe: MTLPipeline) -> None:
    with pytest.raises(TypeError, match=r"give the column of the texts, for a data set `KeyDataset\(rows, 'text'\)`"):
        pipe(Dataset.from_dict({"text": SENTENCES, "label": [0, 1, 2, 3]}))


def test_tokenizer_is_the_models_or_becomes_it(model: MTLModel) -> None:
    tokenizer, model.tokenizer = model.tokenizer, None
    with pytest.raises(ValueError, match=r"no tokenizer, as none was saved with it. Give one: `pipeline\(\.\.\., tok"):
        MTLPipeline(model)
    pipe = MTLPipeline(model, tokenizer=tokenizer)
    assert model.tokenizer is tokenizer
    assert_says(pipe("price"), model.predict("price"))


def test_saved_model_names_its_pipeline(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        named_pipeline(str(tmp_path / "saved"))
    pipe = named_pipeline(str(tmp_path / "saved"), trust_remote_code=True)
    assert type(pipe).__module__.startswith("transformers_modules.saved.")
    assert_says(pipe(SENTENCES, batch_size=2), model.predict(SENTENCES))
    # The only pipeline of a folder need not be named.
    unnamed: Any = pipeline
    assert type(unnamed(model=str(tmp_path / "saved"), trust_remote_code=True)) is type(pipe)


def test_half_precision_is_answered(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    pipe = named_pipeline(str(tmp_path / "saved"), trust_remote_code=True, dtype=torch.bfloat16)
    assert pipe.model.dtype == torch.bfloat16
    answer = pipe("price", return_embeddings=True)
    np.testing.assert_allclose(answer["embedding"], model.encode("price"), atol=2e-2)  # 8 binary places.


def test_other_pipelines_of_the_folder(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    options: dict[str, Any] = {"model": str(tmp_path / "saved"), "trust_remote_code": True}
    states: Any = pipeline("feature-extraction", **options)("price", return_tensors=True)  # (1, T, H)
    with torch.inference_mode():
        expected = model(**model.tokenizer("price", return_tensors="pt")).last_hidden_state  # (1, T, H)
    torch.testing.assert_close(states, expected, atol=1e-6, rtol=0)
    # One classifier is made of a task by `mtl export-task`; the library refuses the whole.
    with pytest.raises(ValueError, match="Unrecognized configuration class .*MTLConfig"):
        pipeline("text-classification", **options)


RUN = """
from transformers import AutoModel, pipeline

source, kept, again, *texts = sys.argv[1:]
trust = {"trust_remote_code": True}
refused = error_of(pipeline, "multi-task-classification", model=source)
assert not any("pipeline_mtl" in name for name in sys.modules), "code ran without trust"
first = pipeline("multi-task-classification", model=source, **trust)
first.save_pretrained(kept)
second = pipeline("multi-task-classification", model=kept, **trust)
AutoModel.from_pretrained(kept, **trust).save_pretrained(again)
third = pipeline("multi-task-classification", model=again, **trust)
answers = [pipe(texts, batch_size=2, return_embeddings=True) for pipe in (first, second, third)]
report(
    refused=refused,
    modules=[type(pipe).__module__ for pipe in (first, second, third)],
    predictions=[[answer["predictions"] for answer in some] for some in answers],
    embeddings=[[answer["embedding"].tolist() for answer in some] for some in answers],
)
"""


def assert_ran(got: dict[str, Any], model: MTLModel, folder: Path) -> None:
    """Asserts that three generations of a pipeline, run without the package, said what the model says."""
    kind, message = got["refused"]
    assert kind == "ValueError"
    assert "trust_remote_code=True" in message
    for predictions, embeddings in zip(got["predictions"], got["embeddings"], strict=True):
        assert_says(predictions, model.predict(SENTENCES))
        np.testing.assert_allclose(embeddings, model.encode(SENTENCES), atol=1e-6)
    for name in ("kept", "again"):
        assert names(folder / name) == SAVED_FILES
        assert (folder / name / "pipeline_mtl.py").read_bytes() == (ROOT / "pipeline_mtl.py").read_bytes()


@pytest.mark.slow
def test_runs_from_the_folder_without_the_package(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    folders = [tmp_path / name for name in ("saved", "kept", "again")]
    got = run_fresh(RUN, *folders, *SENTENCES, env=offline_env(tmp_path / "home"), cwd=tmp_path / "empty")
    assert_ran(got, model, tmp_path)
    for name, module in zip(("saved", "kept", "again"), got["modules"], strict=True):
        assert module.startswith(f"transformers_modules.{name}.")


PUSH = """
root, folder = sys.argv[1:]
sys.path.insert(0, root)
from modeling_mtl import MTLModel

report(url=MTLModel.from_pretrained(folder).push_to_hub("shared"))
"""


@pytest.mark.slow
def test_runs_from_the_hub_without_the_package(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    with HubStandIn() as hub:
        env = hub_env(hub.endpoint, tmp_path / "pusher")
        run_fresh(PUSH, ROOT, tmp_path / "saved", env=env, cwd=tmp_path / "pushing", package=True)
        assert "pipeline_mtl.py" in hub.files("tester/shared")
        env = hub_env(hub.endpoint, tmp_path / "loader")
        folders = [tmp_path / name for name in ("kept", "again")]
        got = run_fresh(RUN, "tester/shared", *folders, *SENTENCES, env=env, cwd=tmp_path / "loading")
    assert_ran(got, model, tmp_path)
    assert got["modules"][0].startswith("transformers_modules.tester.shared.")

"""Embeddings of a frozen encoder are computed once, are found again, and train the same heads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from checks import assert_close, full_labels, same, training_args
from conftest import MakeModel
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import BatchEncoding, TrainerCallback

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.collation import POOLED, MTLCollator
from mtl.embedding_cache import EmbeddedRows, obstacle
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


class _Calls:
    """Counts the forward passes of a model's encoder."""

    def __init__(self, model: MTLModel) -> None:
        self.count = 0
        model.backbone.register_forward_hook(self._add)

    def _add(self, *args: Any) -> None:
        self.count += 1


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "mtl"


@pytest.fixture
def no_caching() -> Iterator[None]:
    datasets.disable_caching()
    yield
    datasets.enable_caching()


def make_trainer(model: MTLModel, splits: DatasetDict, folder: Path, **settings: Any) -> MTLTrainer:
    args = training_args(folder, **{"freeze": "backbone", **settings})
    return MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["validation"])


def embedded(trainer: MTLTrainer, dataset: Dataset) -> EmbeddedRows:
    assert trainer.embedding_cache is not None
    rows = trainer.embedding_cache.rows(dataset)
    assert rows is not None
    return rows


@pytest.mark.parametrize("settings", [{}, {"normalize": False}, {"normalize_for_heads": True}])
def test_forward_takes_pooled_embeddings_in_place_of_tokens(
    settings: dict[str, Any], tiny_model: MakeModel, inputs: BatchEncoding
) -> None:
    model = tiny_model(**settings).eval()
    calls = _Calls(model)
    full = model(**inputs, labels=full_labels())
    pooled = model.pool(full.last_hidden_state, inputs["attention_mask"])
    short = model(pooled=pooled, labels=full_labels())
    assert calls.count == 1
    assert short.last_hidden_state is None
    assert same(short.embeddings, full.embeddings)
    assert same(short.loss, full.loss)
    assert all(same(short.logits[name], full.logits[name]) for name in full.logits)
    assert all(same(short.task_losses[name], full.task_losses[name]) for name in full.task_losses)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_each_row_has_its_own_embedding_and_labels(
    pooling: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks, pooling=pooling, normalize=False)
    trainer = make_trainer(model, splits, tmp_path, per_device_eval_batch_size=7)
    collator = MTLCollator(model.tokenizer, tasks)
    model.eval()
    for split in splits.values():
        rows = embedded(trainer, split)
        assert len(rows) == len(split)
        (found,) = rows.__getitems__([5, 0, len(split) - 1])
        batch = collator([split[5], split[0], split[len(split) - 1]])
        labels = batch.pop("labels")
        with torch.inference_mode():
            # Another batch has other padding, and sums in another order.
            assert_close(found.inputs[POOLED], model(**batch).embeddings, atol=1e-6)
        for name, expected in labels.items():
            torch.testing.assert_close(found.inputs["labels"][name], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embeddings_are_bit_equal_to_forward_of_the_same_batch(
    precision: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks, normalize=False)
    trainer = make_trainer(model, splits, tmp_path, precision=precision, per_device_eval_batch_size=64)
    lengths = torch.tensor([len(ids) for ids in splits["train"][:]["input_ids"]])
    order = lengths.argsort(descending=True, stable=True).tolist()
    batch = MTLCollator(model.tokenizer, tasks)([splits["train"][row] for row in order])
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = model(**batch).embeddings
    found = embedded(trainer, splits["train"]).columns[POOLED]
    assert found.dtype == torch.float32
    assert same(found[order], expected)


def test_a_second_run_makes_no_forward_pass(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, fresh_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, tasks = toy_splits
    results = []
    with caplog.at_level("INFO", "mtl.embedding_cache"):
        for run in range(2):
            model = tiny_model(tasks=tasks)
            calls = _Calls(model)
            trainer = make_trainer(model, splits, tmp_path, eval_strategy="steps", eval_steps=2)
            trainer.train()
            assert calls.count == (0 if run else 64 // 8 + 40 // 8)  # Train and validation, 8 rows a batch.
            results.append(trainer.evaluate())
            assert calls.count == (0 if run else 13)
    assert {key: value for key, value in results[0].items() if "per_second" not in key and "runtime" not in key} == {
        key: value for key, value in results[1].items() if "per_second" not in key and "runtime" not in key
    }
    assert len(list(fresh_cache.glob("embeddings-*.arrow"))) == 2
    # 64 rows of 32 float32 are 8,192 bytes.
    assert "Embeddings of 64 rows computed in" in caplog.text
    assert "Embeddings of 64 rows read from the cache in" in caplog.text
    assert "64 x 32 x 4 bytes = 0.0 MiB in memory, and in" in caplog.text


def test_other_weights_texts_or_pooling_miss(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, fresh_cache: Path
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    trainer = make_trainer(model, splits, tmp_path)
    first = embedded(trainer, splits["train"])
    assert embedded(trainer, splits["train"]) is first
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(-1.0)
    other = embedded(trainer, splits["train"])
    assert not same(other.columns[POOLED], first.columns[POOLED])
    ids = splits["train"][0]["input_ids"]
    changed = splits["train"].map(lambda row, index: row if index else {"input_ids": ids[::-1]}, with_indices=True)
    assert not same(embedded(trainer, changed).columns[POOLED][0], other.columns[POOLED][0])
    assert len(list(fresh_cache.glob("embeddings-*.arrow"))) == 3
    pooled_max = tiny_model(tasks=tasks, pooling="max")
    calls = _Calls(pooled_max)
    embedded(make_trainer(pooled_max, splits, tmp_path), splits["train"])
    assert calls.count > 0
    model.config.pooling = "max"  # Of a trainer that holds vectors of the mean.
    assert not same(embedded(trainer, splits["train"]).columns[POOLED], other.columns[POOLED])
    # Other heads are another model, but the same encoder.
    same_encoder = tiny_model(tasks=tasks[:1], head_dropout=0.5)
    calls = _Calls(same_encoder)
    embedded(make_trainer(same_encoder, splits, tmp_path), splits["train"])
    assert calls.count == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_made_anew(
    share: float,
    tiny_model: MakeModel,
    toy_splits: Splits,
    tmp_path: Path,
    fresh_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    splits, tasks = toy_splits
    first = embedded(make_trainer(tiny_model(tasks=tasks), splits, tmp_path), splits["train"])
    (file,) = fresh_cache.glob("embeddings-*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    again = embedded(make_trainer(tiny_model(tasks=tasks), splits, tmp_path), splits["train"])
    assert "was cut off, perhaps by a full disk: it is made anew" in caplog.text
    assert same(again.columns[POOLED], first.columns[POOLED])
    assert file.read_bytes() == content


def test_disabled_caching_leaves_no_file(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, fresh_cache: Path, no_caching: None
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    trainer = make_trainer(model, splits, tmp_path)
    calls = _Calls(model)
    trainer.train()
    assert calls.count == 13  # As above: once for this trainer.
    assert not list(fresh_cache.glob("embeddings-*"))


class _Encoder(TrainerCallback):
    def __init__(self, calls: _Calls) -> None:
        self.calls, self.before = calls, 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before = self.calls.count


@pytest.mark.parametrize("steps", [1, 2])
def test_training_equals_that_without_the_cache(
    steps: int, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    results: list[tuple[dict[str, Tensor], list[dict[str, float]], Any]] = []
    for setting in ("true", "false"):
        model = tiny_model(tasks=tasks, head_dropout=0.1)
        settings: dict[str, Any] = {
            "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 8 // steps,
            "gradient_accumulation_steps": steps, "eval_strategy": "epoch", "save_strategy": "epoch",
            "load_best_model_at_end": True, "train_sampling_strategy": "group_by_length",
        }  # fmt: skip
        trainer = make_trainer(model, splits, tmp_path / setting, cache_embeddings=setting, **settings)
        calls = _Calls(model)
        trainer.add_callback(watch := _Encoder(calls))
        trainer.train()
        if setting == "true":
            assert calls.count == watch.before == 13  # Nothing but the embedding itself, before the training.
        heads = {name: value for name, value in model.state_dict().items() if name.startswith("heads.")}
        results.append((heads, trainer.state.log_history, trainer.predict(splits["validation"])))
    (heads, history, prediction), (full_heads, full_history, full_prediction) = results
    for name, value in full_heads.items():
        # Embeddings differ by float32 sums in another order; AdamW lets tiny gradients grow.
        torch.testing.assert_close(heads[name], value, rtol=1e-3, atol=1e-4)
    for found, expected in zip(history, full_history, strict=True):
        for key in ("loss", "eval_loss", "eval_score", "eval_topic_accuracy", "grad_norm"):
            if key in expected:
                assert found[key] == pytest.approx(expected[key], rel=1e-4), key
    for key in ("test_topic_accuracy", "test_sentiment_accuracy", "test_tags_f1_micro"):
        assert prediction.metrics.get(key) == full_prediction.metrics.get(key)
    labels, full_labels = prediction.label_ids, full_prediction.label_ids
    assert all((labels[name] == full_labels[name]).all() for name in ("topic", "sentiment"))


def test_resume_is_bit_equal(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    settings: dict[str, Any] = {"max_steps": 12, "save_strategy": "steps", "save_steps": 5, "logging_steps": 3}
    trainer = make_trainer(tiny_model(tasks=tasks, head_dropout=0.2), splits, tmp_path, **settings)
    trainer.train()
    whole = trainer.model.state_dict()
    resumed = make_trainer(tiny_model(tasks=tasks, head_dropout=0.2), splits, tmp_path, **settings)
    resumed.train(str(tmp_path / "checkpoint-5"))
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_evaluation_alone_reads_embeddings(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    scores = []
    for setting in ("auto", "false"):
        model = tiny_model(tasks=tasks)
        trainer = make_trainer(model, splits, tmp_path, freeze="all", cache_embeddings=setting)
        calls = _Calls(model)
        scores += [trainer.evaluate()["eval_score"], trainer.evaluate()["eval_score"]]
        assert calls.count == (5 if setting == "auto" else 10)  # 40 rows, 8 a batch.
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-5)


def test_no_rows_are_as_without_the_cache(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    splits["validation"] = splits["validation"].select([])
    found = []
    for setting in ("auto", "false"):
        trainer = make_trainer(tiny_model(tasks=tasks), splits, tmp_path, cache_embeddings=setting)
        trainer.train()
        found.append(sorted(trainer.evaluate()))
    assert found[0] == found[1]


def test_threads_are_given_back(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    trainer = make_trainer(tiny_model(tasks=toy_splits[1]), toy_splits[0], tmp_path)
    torch.set_num_threads(2)
    try:
        trainer.train()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "none"}, "the encoder learns"),
        ({"freeze": "lower_layers:1"}, "the encoder learns"),
        ({"freeze": "heads:topic"}, "the encoder learns"),
        ({"include_num_input_tokens_seen": "non_padding"}, "counts tokens"),
        ({"include_for_metrics": ["inputs"]}, "asks for inputs"),
        ({"bf16_full_eval": True}, "another precision"),
    ],
)
def test_what_cannot_be_cached(
    settings: dict[str, Any], message: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    with pytest.raises(ValueError, match=f"cache_embeddings='true' is not possible: .*{message}"):
        make_trainer(tiny_model(tasks=tasks), splits, tmp_path, cache_embeddings="true", **settings)
    assert make_trainer(tiny_model(tasks=tasks), splits, tmp_path, **settings).embedding_cache is None


def test_an_encoder_frozen_by_hand_is_not_cached_while_its_dropout_runs(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    model.backbone.requires_grad_(False)
    trainer = make_trainer(model, splits, tmp_path, freeze=None)
    assert trainer.embedding_cache is None
    assert "dropout" in (obstacle(model, trainer.args, trainer.data_collator) or "")
    model.frozen_modules = ("backbone",)
    model.train(model.training)
    assert make_trainer(model, splits, tmp_path, freeze=None).embedding_cache is not None


def test_another_collator_or_data_set_is_not_cached(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    args = training_args(tmp_path, freeze="backbone")
    collator = MTLCollator(model.tokenizer, tasks)
    other = MTLTrainer(model, args, train_dataset=splits["train"], data_collator=lambda rows: collator(rows))
    assert other.embedding_cache is None
    trainer = make_trainer(model, splits, tmp_path)
    assert trainer.embedding_cache is not None
    assert trainer.embedding_cache.rows([splits["train"][0]]) is None
    assert trainer.embedding_cache.rows(splits["train"].remove_columns("input_ids")) is None


@pytest.mark.parametrize("value", ["auto", "true", "false", True, False])
def test_setting_may_be_a_bool(value: Any, tmp_path: Path) -> None:
    assert training_args(tmp_path, cache_embeddings=value).cache_embeddings == str(value).lower()


def test_unknown_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_embeddings 'yes' is unknown. Use 'auto', 'true' or 'false'."):
        training_args(tmp_path, cache_embeddings="yes")

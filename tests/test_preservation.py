"""The loss that keeps embeddings near those of the encoder that training began with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import same, training_args
from conftest import MakeModel
from datasets import DatasetDict
from torch.nn import functional as F
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.preservation import PRESERVATION_NAME, ROWS, Preservation, count_rows
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def test_loss_by_hand(tiny_model: MakeModel, tmp_path: Path) -> None:
    preservation = Preservation(tiny_model(), training_args(tmp_path, preserve_embeddings=0.5))
    # Cosines 1, 0 and 3/5: 1 - cosine is 0, 1 and 2/5. Half of their sum over the 4 rows of the step: 7/40.
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]], requires_grad=True)
    originals = torch.tensor([[1.0, 0.0]] * 3)
    loss = preservation.loss(embeddings, originals, {ROWS: torch.tensor(4)})
    assert loss.item() == pytest.approx(0.175)
    assert preservation.take_mean() == {"loss_preservation": pytest.approx(1.4 / 3)}
    assert preservation.take_mean() == {}
    batches = [{"original_embeddings": originals}, {"original_embeddings": originals[:1]}]
    assert {name: int(count) for name, count in count_rows(batches).items()} == {ROWS: 4}
    assert count_rows([{"labels": {}}]) == {}


def _trainer(model: MTLModel, splits: DatasetDict, folder: Path, **settings: Any) -> MTLTrainer:
    settings = {"max_steps": 6, "per_device_train_batch_size": 8, "preserve_embeddings": 1.0, **settings}
    return MTLTrainer(model, training_args(folder, **settings), train_dataset=splits["train"])


def _moved_by(model: MTLModel, original: MTLModel, splits: DatasetDict) -> float:
    batch = model.tokenizer.pad({"input_ids": splits["train"]["input_ids"][:]}, return_tensors="pt")
    with torch.no_grad():
        first, second = (some.eval()(**batch).embeddings for some in (model, original))
    return (1 - F.cosine_similarity(first, second)).mean().item()


def test_embeddings_stay_near_the_original_ones(make_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    moved = {}
    for weight in (0.0, 10.0):
        model = make_model(tasks=tasks, backbone_dropout=0.0)
        trainer = _trainer(model, splits, tmp_path / "out", preserve_embeddings=weight, max_steps=20)
        trainer.train()
        moved[weight] = _moved_by(model, make_model(tasks=tasks), splits)
        logged = [log["loss_preservation"] for log in trainer.state.log_history if "loss_preservation" in log]
        assert len(logged) == (20 if weight else 0)
        assert ("original_embedding" in getattr(trainer.train_dataset, "column_names", ())) == bool(weight)
        if logged:
            assert logged[0] == pytest.approx(0.0, abs=1e-6)  # The first step has the original encoder.
            assert max(logged[1:]) > 1e-4
    assert moved[10.0] < 0.5 * moved[0.0]


class _Moved(TrainerCallback):
    """Moves the encoder after the originals were computed."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        table = kwargs["model"].backbone.get_parameter("embeddings.word_embeddings.weight")
        with torch.no_grad():
            table.add_(0.02 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("batch_size", "steps"), [(6, 11), (64, 1)])
def test_logged_loss_is_the_mean_over_rows(
    batch_size: int, steps: int, make_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    model = make_model(tasks=tasks, backbone_dropout=0.0)
    args = {"learning_rate": 0.0, "max_steps": steps, "logging_steps": steps, "preserve_embeddings": 2.0}
    trainer = _trainer(model, splits, tmp_path / "out", per_device_train_batch_size=batch_size, **args)
    trainer.add_callback(_Moved())
    trainer.train()  # With learning rate 0, one epoch over the 64 rows.
    logged = next(log for log in trainer.state.log_history if "loss" in log)
    by_hand = _moved_by(model, make_model(tasks=tasks), splits)
    assert by_hand > 1e-4
    assert logged["loss_preservation"] == pytest.approx(by_hand, rel=1e-3)  # Of two sums near 1, their difference.
    if steps == 1:
        total = sum(logged[f"loss_{task.name}"] for task in tasks) + 2.0 * logged["loss_preservation"]
        assert logged["loss"] == pytest.approx(total, rel=1e-5)


def test_originals_are_computed_once(
    make_model: MakeModel, toy_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, tasks = toy_splits
    embedded: list[int] = []
    embed_batch = Preservation._embed_batch

    def watched(self: Preservation, columns: Any, **more: Any) -> Any:
        embedded.append(len(columns["input_ids"]))
        return embed_batch(self, columns, **more)

    monkeypatch.setattr(Preservation, "_embed_batch", watched)
    for _ in range(2):
        trainer = _trainer(make_model(tasks=tasks, seed=7), splits, tmp_path / "out", max_steps=1)
        trainer.train()
        trainer.train()
    assert embedded == [64]
    formatted = {name: split.with_format("torch") for name, split in splits.items()}
    _trainer(make_model(tasks=tasks, seed=7), formatted, tmp_path / "out", max_steps=1).train()
    assert embedded == [64]  # In another format the rows are the same.
    _trainer(make_model(tasks=tasks, seed=8), splits, tmp_path / "out", max_steps=1).train()
    assert embedded == [64, 64]  # Another encoder.
    assert trainer.model.training


def test_run_goes_on_with_the_original_encoder(make_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    first = make_model(tasks=tasks)
    _trainer(first, splits, tmp_path / "out", **settings).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-3")
    assert Path(checkpoint, PRESERVATION_NAME).is_file()
    resumed = _trainer(make_model(tasks=tasks), splits, tmp_path / "out", **settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    for name, weight in resumed.model.state_dict().items():
        assert same(weight, first.state_dict()[name]), name
    tuned = MTLModel.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="not the one that .*checkpoint-3' began with.*Build the model as the first"):
        _trainer(tuned, splits, tmp_path / "out", **settings).train(resume_from_checkpoint=checkpoint)


def test_checkpoint_that_does_not_know_its_original(make_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    _trainer(make_model(tasks=tasks), splits, tmp_path / "out", preserve_embeddings=0.0, **settings).train()
    assert not (tmp_path / "out" / "checkpoint-3" / PRESERVATION_NAME).exists()
    with pytest.raises(ValueError, match="is of a run without preserve_embeddings"):
        _trainer(make_model(tasks=tasks), splits, tmp_path / "out", **settings).train(
            resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3")
        )


def test_what_cannot_be_preserved(
    make_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, _ = toy_splits
    model = make_model(tasks=[TaskConfig("preservation", num_labels=2)])
    with pytest.raises(ValueError, match="Task 'preservation': the log of preserve_embeddings has that name"):
        _trainer(model, splits, tmp_path / "out")
    _trainer(make_model(), splits, tmp_path / "out", freeze="backbone")
    assert "preserve_embeddings=1.0 has no effect while the encoder is frozen" in caplog.text
    caplog.clear()
    _trainer(make_model(), splits, tmp_path / "out", freeze_schedule={"0": "backbone", "1": "none"})
    assert "no effect" not in caplog.text  # It learns later.
    trainer = _trainer(make_model(), splits, tmp_path / "out")
    trainer.train_dataset = [splits["train"][0]]
    with pytest.raises(ValueError, match="needs training rows as a `datasets.Dataset`, found list"):
        trainer.train()

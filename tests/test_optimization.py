"""Each layer's learning rate, listed, with the weight decay that the groups had before."""

from pathlib import Path

import pytest
import torch
from checks import training_args
from conftest import MakeModel
from datasets import DatasetDict

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]

# Below the layers, in a layer (by its number), and beside them, said by name and apart from the code under test.
PARTS = {
    "bert": ("embeddings.", "encoder.layer.", ()),
    "distilbert": ("embeddings.", "transformer.layer.", ()),
    "modernbert": ("embeddings.", "layers.", ("final_norm.weight",)),
    "mpnet": ("embeddings.", "encoder.layer.", ("encoder.relative_attention_bias.weight",)),
    "electra": ("embeddings.", "encoder.layer.", ()),
    "deberta-v2": (
        "embeddings.",
        "encoder.layer.",
        ("encoder.rel_embeddings.weight", "encoder.LayerNorm.weight", "encoder.LayerNorm.bias"),
    ),
}


def _groups(model: MTLModel, args: MTLTrainingArguments) -> dict[str, tuple[float, float]]:
    """Returns each parameter's learning rate and weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = MTLTrainer(model, args).create_optimizer()
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found)) == len(names), "A parameter is in no group, or in two."
    assert optimizer.param_groups[0]["lr"] == args.learning_rate, "The log would show another rate."
    return dict(found)


def _rate(name: str, model_type: str) -> float:
    """Returns the rate for learning_rate 1e-3, layer_decay 0.5 and head_learning_rate 1e-2, of two layers."""
    below, layers, beside = PARTS[model_type]
    if name.startswith("heads."):
        return 1e-2
    name = name.removeprefix("backbone.")
    rates = {f"{layers}1.": 1e-3, f"{layers}0.": 0.5e-3, below: 0.25e-3, **dict.fromkeys(beside, 1e-3)}
    return next(rate for prefix, rate in rates.items() if name.startswith(prefix))


@pytest.mark.parametrize("model_type", PARTS)
def test_rates_by_layer(model_type: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-3, "head_learning_rate": 1e-2, "weight_decay": 0.1}
    plain = _groups(tiny_model(model_type), training_args(tmp_path, **settings))
    model = tiny_model(model_type)
    groups = _groups(model, training_args(tmp_path, layer_decay=0.5, **settings))
    for name, (rate, decay) in groups.items():
        assert rate == pytest.approx(_rate(name, model_type)), name
        assert decay == plain[name][1], name
    assert {rate for name, (rate, _) in plain.items() if name.startswith("backbone.")} == {1e-3}
    if model_type == "electra":
        assert groups["backbone.embeddings.word_embeddings.weight"][0] == pytest.approx(0.25e-3)


def test_projection_below_the_layers_has_the_rate_of_the_embeddings(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("electra")
    model.backbone.embeddings_project = torch.nn.Linear(32, 32)  # As where the embeddings are of another width.
    groups = _groups(model, training_args(tmp_path, learning_rate=1e-3, layer_decay=0.5))
    assert groups["backbone.embeddings_project.weight"][0] == pytest.approx(0.25e-3)


def test_a_step_of_sgd_is_as_long_as_its_rate(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    moved = []
    for layer_decay in (None, 0.5):
        model = tiny_model()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        settings = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
        args = training_args(tmp_path, layer_decay=layer_decay, lr_scheduler_type="constant", **settings)
        MTLTrainer(model, args, train_dataset=toy_splits[0]["train"]).train()
        moved.append({name: (p.detach() - before[name]).norm().item() for name, p in model.named_parameters()})
    factors = {"backbone.embeddings.": 0.25, "backbone.encoder.layer.0.": 0.5}
    for name, length in moved[0].items():
        factor = next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)
        # A difference of float32 weights, of which small ones keep few digits.
        assert moved[1][name] == pytest.approx(factor * length, rel=1e-2, abs=1e-6), name


def test_resuming_equals_the_unbroken_run(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    settings = {"layer_decay": 0.7, "head_learning_rate": 2e-2, "weighting": "uncertainty", "max_steps": 6}
    settings |= {"save_strategy": "steps", "save_steps": 3, "weight_decay": 0.1}
    model = tiny_model(tasks=tasks)
    MTLTrainer(model, training_args(tmp_path, **settings), train_dataset=splits["train"]).train()
    resumed = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), train_dataset=splits["train"])
    resumed.train(str(tmp_path / "checkpoint-3"))
    for name, parameter in resumed.model.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name]), name
    other = training_args(tmp_path, **{**settings, "layer_decay": 0.8})
    with pytest.raises(ValueError, match="its layer_decay is 0.7, that of this run 0.8"):
        MTLTrainer(tiny_model(tasks=tasks), other, train_dataset=splits["train"]).train(resume_from_checkpoint=True)


def test_refusals(tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer_decay=0.9: backbone AlbertModel has no list of 2 layers"):
        MTLTrainer(tiny_model("albert"), training_args(tmp_path, layer_decay=0.9))
    for layer_decay in (0.0, -0.5, 1.1):
        with pytest.raises(ValueError, match=f"layer_decay must be above 0 and at most 1, found {layer_decay}"):
            training_args(tmp_path, layer_decay=layer_decay)

"""What a strategy freezes stays bit-equal in training, and nothing else does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import gradients, training_args
from conftest import MakeModel
from datasets import DatasetDict
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.freezing import Freezing, apply_freezing
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]

# Which parameters a setting freezes, said by name and apart from the code under test.
STRATEGIES: dict[str, Callable[[str], bool]] = {
    "none": lambda name: False,
    "backbone": lambda name: name.startswith("backbone."),
    "heads:topic": lambda name: name.startswith("heads.topic."),
    "heads_except:sentiment": lambda name: name.startswith("heads.") and not name.startswith("heads.sentiment."),
    "lower_layers:1": lambda name: name.startswith(("backbone.embeddings.", "backbone.encoder.layer.0.")),
    "lower_layers:0": lambda name: name.startswith("backbone.embeddings."),
}


def test_without_a_setting_the_model_is_taken_as_it_is(tiny_model: MakeModel, tmp_path: Path) -> None:
    args = MTLTrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, use_cpu=True)
    model = tiny_model()
    apply_freezing(model, "backbone")
    freezing = MTLTrainer(model, args).freezing
    assert freezing.modules == ("backbone",)
    assert freezing.num_trainable == sum(parameter.numel() for parameter in model.heads.parameters())
    model = tiny_model()
    model.heads["topic"].requires_grad_(False)  # By hand.
    assert MTLTrainer(model, args).freezing.num_trainable < freezing.num_total
    assert "taken as it is" in str(MTLTrainer(model, args).freezing)


@pytest.mark.parametrize("setting", STRATEGIES)
def test_frozen_parameters_stay_and_the_others_change(
    setting: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = MTLTrainingArguments(
        output_dir=str(tmp_path), freeze=setting, max_steps=3, learning_rate=1e-2, disable_tqdm=True, use_cpu=True
    )
    trainer = MTLTrainer(model, args, train_dataset=toy_splits[0]["train"])
    trainer.train()
    for name, parameter in model.named_parameters():
        is_same = torch.equal(parameter, before[name])
        assert is_same == STRATEGIES[setting](name), name


@pytest.mark.parametrize("setting", STRATEGIES)
def test_counts_and_log(setting: str, tiny_model: MakeModel, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    with caplog.at_level("INFO", "mtl.freezing"):
        freezing = apply_freezing(model, setting)
    expected = sum(p.numel() for name, p in model.named_parameters() if not STRATEGIES[setting](name))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (freezing.num_trainable, freezing.num_total) == (expected, total)
    assert f"{expected:,} of {total:,} parameters train" in caplog.text


def test_frozen_modules_have_no_dropout_while_the_rest_trains(tiny_model: MakeModel) -> None:
    model = tiny_model()
    apply_freezing(model, "lower_layers:1")
    model.train()
    names = ("embeddings", "encoder.layer.0", "encoder.layer.1")
    embeddings, lower, upper = (model.backbone.get_submodule(name) for name in names)
    assert not any(module.training for module in [*embeddings.modules(), *lower.modules()])
    assert all(module.training for module in [*upper.modules(), *model.heads.modules()])


def test_a_new_setting_takes_the_old_ones_place(tiny_model: MakeModel) -> None:
    model = tiny_model()
    apply_freezing(model, "backbone")
    apply_freezing(model, "none")
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()
    assert all(module.training for module in model.modules())


def test_all_refuses_to_train_but_evaluates(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    args = MTLTrainingArguments(output_dir=str(tmp_path), freeze="all", disable_tqdm=True, use_cpu=True)
    trainer = MTLTrainer(
        tiny_model(), args, train_dataset=toy_splits[0]["train"], eval_dataset=toy_splits[0]["validation"]
    )
    with pytest.raises(ValueError, match="freeze='all' leaves no parameter to train"):
        trainer.train()
    assert trainer.evaluate()["eval_topic_support"] > 0


@pytest.mark.parametrize(
    "model_type",
    ["bert", "distilbert", "modernbert", "roberta", "mpnet", "deberta-v2", "electra", "gpt2", "gpt_neox", "bloom"],
)
def test_lower_layers_of_every_backbone(model_type: str, tiny_model: MakeModel) -> None:
    model = tiny_model(model_type)
    freezing = apply_freezing(model, "lower_layers:1")
    assert not any(parameter.requires_grad for parameter in model.get_input_embeddings().parameters())
    layers = {
        name: module
        for name, module in model.named_modules()
        if name.endswith(("layer.0", "layers.0", "layer.1", "layers.1", "h.0", "h.1"))
    }
    lowest = [module for name, module in layers.items() if name.endswith("0")]
    upper = [module for name, module in layers.items() if name.endswith("1")]
    assert len(lowest) == len(upper) == 1
    assert not any(parameter.requires_grad for parameter in lowest[0].parameters())
    assert all(parameter.requires_grad for parameter in upper[0].parameters())
    assert 0 < freezing.num_trainable < freezing.num_total


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("backbones", "freeze='backbones' is not a setting"),
        ("backbone:1", "is not a setting"),
        ("heads:", "is not a setting"),
        ("heads:topik", "there is no task 'topik' with a head; those that have one are"),
        ("heads_except:topik", "there is no task 'topik'"),
        ("lower_layers:x", "is not a setting"),
        ("lower_layers:3", "has only 2 layers"),
    ],
)
def test_illegal_settings(setting: str, message: str, tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=message):
        apply_freezing(tiny_model(), setting)


def test_layers_that_cannot_be_told_apart_are_refused(tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="AlbertModel has no list of 2 layers"):
        apply_freezing(tiny_model("albert"), "lower_layers:1")
    # Attention, norms and feed-forward of XLM are a list each: freezing one of them would leave half a layer to learn.
    with pytest.raises(ValueError, match="XLMModel has no list of 2 layers .*spread over several lists"):
        apply_freezing(tiny_model("xlm"), "lower_layers:1")


def test_word_embeddings_of_an_unknown_place_are_refused(tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="freeze='lower_layers:1': the word embeddings of backbone OPTModel are not"):
        apply_freezing(tiny_model("opt"), "lower_layers:1")


def _graph_of(model: MTLModel, setting: str, splits: DatasetDict, folder: Path, **settings: Any) -> dict[str, Any]:
    """Trains a step, and returns what autograd saw of each layer's input, and the gradients."""
    seen: dict[str, Any] = {"inputs": {}, "saved": 0, "gradients": {}}
    layers = {name: module for name, module in model.named_modules() if name.endswith(("layer.0", "layer.1"))}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen["inputs"].update({name: given[0].requires_grad and given[0].grad_fn})
        )

    class _Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            seen["gradients"] = gradients(model)

    args = training_args(folder, freeze=setting, max_steps=1, max_grad_norm=0.0, **settings)
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], callbacks=[_Gradients()])

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen["saved"] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.train()
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_lower_layers_take_no_part_in_autograd(
    checkpointing: bool, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    names = ("backbone.encoder.layer.0", "backbone.encoder.layer.1")
    results = {}
    for setting in ("none", "lower_layers:1", "lower_layers:2"):
        model = tiny_model(tasks=tasks, head_dropout=0.0)
        set_dropout_modules(model, 0.0)
        results[setting] = _graph_of(model, setting, splits, tmp_path, activation_checkpointing=checkpointing)
    assert all(results["none"]["inputs"][name] for name in names)
    # What enters the first layer that learns has no history, so nothing was kept for a backward pass below it.
    assert not any(results["lower_layers:1"]["inputs"][name] for name in names)
    assert not any(results["lower_layers:2"]["inputs"][name] for name in names)
    saved = [results[setting]["saved"] for setting in ("none", "lower_layers:1", "lower_layers:2")]
    assert saved[0] > saved[1] > saved[2]
    # And yet the layers that learn get the gradient that they would get.
    learned = [name for name in results["none"]["gradients"] if not STRATEGIES["lower_layers:1"](name)]
    assert set(learned) == set(results["lower_layers:1"]["gradients"])
    for name in learned:
        expected = results["none"]["gradients"][name]
        torch.testing.assert_close(results["lower_layers:1"]["gradients"][name], expected, rtol=1e-5, atol=1e-7)


def set_dropout_modules(model: MTLModel, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
    model.backbone.config.attention_probs_dropout_prob = probability


@pytest.mark.parametrize(
    ("learn", "total", "share"),
    [(0, 1000, "(0 %)"), (9, 100_000, "(less than 0.01 %)"), (10, 100_000, "(0.01 %)"), (1, 3, "(33.33 %)")],
)
def test_share_that_learns_is_never_rounded_to_nothing(learn: int, total: int, share: str) -> None:
    assert str(Freezing("backbone", (), learn, total)).startswith(
        f"freeze=backbone: {learn:,} of {total:,} parameters train {share}"
    )

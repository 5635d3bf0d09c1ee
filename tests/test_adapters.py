"""Adapters: what they train, that they reload bit for bit and merge, and that training with them resumes."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import logits_of, output_layer, training_args
from conftest import MakeModel
from datasets import DatasetDict
from fresh_process import offline_env, run_fresh
from peft import LoraConfig, PeftModel, PromptTuningConfig
from saved_folders import SAVED_FILES, assert_loads_as, names
from torch import Tensor
from transformers import BatchEncoding, TrainerCallback

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.adapters import HEADS_NAME, add_adapter, has_adapter, load_adapter, merge_adapter, save_adapter
from mtl.evaluation import evaluate_split, evaluation_of_final_model
from mtl.settings import parse_settings
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {"peft_type": "LORA", "r": 4, "use_dora": True},
    "ia3": {"peft_type": "IA3"},
    "vera": {"peft_type": "VERA", "r": 4},
    "loha": {"peft_type": "LOHA", "r": 4},
    "oft": {"peft_type": "OFT", "oft_block_size": 4},
}


def _shake(model: MTLModel) -> None:
    """Moves everything that learns, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def _trainable(model: MTLModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert", "mpnet", "electra", "deberta-v2"])
@pytest.mark.parametrize("config", CONFIGS)
def test_adapter_reloads_bit_for_bit_and_merges(
    config: str, model_type: str, tiny_model: MakeModel, inputs: BatchEncoding, tmp_path: Path
) -> None:
    model, plain = tiny_model(model_type), tiny_model(model_type)
    before = logits_of(model, inputs)
    add_adapter(model, CONFIGS[config])
    _assert_equal(logits_of(model, inputs), before)  # A fresh adapter changes nothing.
    heads = {name for name in plain.state_dict() if name.startswith("heads.")}
    assert heads < _trainable(model)
    base = set(plain.state_dict()) - heads
    assert not {name.replace(".base_layer", "") for name in _trainable(model) - heads} & base
    _shake(model)
    with_adapter = logits_of(model, inputs)
    assert not torch.equal(with_adapter["topic"], before["topic"])
    save_adapter(model, tmp_path)
    again = tiny_model(model_type)
    load_adapter(again, tmp_path)
    _assert_equal(logits_of(again, inputs), with_adapter)
    assert _trainable(again) == _trainable(model)
    merge_adapter(model)
    merged = logits_of(model, inputs)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert len(_trainable(model)) == len(list(plain.parameters()))
    for name, value in with_adapter.items():
        # The product of the adapter is rounded into the weight instead of being added to the output.
        torch.testing.assert_close(merged[name], value, rtol=1e-4, atol=2e-6)
    model.save_pretrained(tmp_path / "merged")
    assert_loads_as(tmp_path / "merged", model)


def test_adapter_alone_is_small_and_read_by_peft_itself(
    tiny_model: MakeModel, inputs: BatchEncoding, tmp_path: Path
) -> None:
    model = tiny_model()
    add_adapter(model, LoraConfig(r=2, target_modules=["query", "value"]))
    _shake(model)
    save_adapter(model, tmp_path)
    assert names(tmp_path) == {"adapter_config.json", "adapter_model.safetensors", HEADS_NAME}
    # 2 layers x 2 modules x 2 matrices of 2 x 32 float32 numbers, beside a header of JSON.
    assert 2048 <= (tmp_path / "adapter_model.safetensors").stat().st_size < 2048 + 1600
    model.eval()
    peft_model = PeftModel.from_pretrained(tiny_model().backbone, str(tmp_path)).eval()
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        assert torch.equal(peft_model(**inputs).last_hidden_state, expected)


def test_merged_folder_needs_no_peft(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model()
    add_adapter(model, LORA)
    _shake(model)
    merge_adapter(model)
    model.eval().save_pretrained(tmp_path / "merged")
    script = (
        "sys.modules['peft'] = None\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "report(embedding=model.encode('match team goal').tolist(), frozen=[n for n, p in model.named_parameters() "
        "if not p.requires_grad])\n"
    )
    found = run_fresh(script, tmp_path / "merged", env=offline_env(tmp_path / "home"), cwd=tmp_path / "empty")
    # The same weights elsewhere in memory may round the last bit in another way.
    assert found["embedding"] == pytest.approx(model.encode("match team goal").tolist(), abs=1e-6)
    assert found["frozen"] == []


def test_model_with_an_adapter_is_not_saved_as_if_it_had_none(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model()
    add_adapter(model, LORA)
    with pytest.raises(ValueError, match="There is an adapter in the encoder, under whose names"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has an adapter already. Merge it first"):
        add_adapter(model, LORA)
    merge_adapter(model)
    for function in (merge_adapter, lambda model: save_adapter(model, tmp_path)):
        with pytest.raises(ValueError, match="The model has no adapter. Add one"):
            function(model)


def test_adapter_of_another_model_is_refused(
    tiny_model: MakeModel, make_model: MakeModel, tasks: tuple[TaskConfig, ...], tmp_path: Path
) -> None:
    model = tiny_model()
    add_adapter(model, LORA)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="is of another encoder: the weights below it are not those"):
        load_adapter(make_model(seed=3), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"has the heads \['sentiment', .*\], the model \['topic'\]"):
        load_adapter(tiny_model(tasks=tasks[:1]), tmp_path / "adapter")
    other = tiny_model()
    add_adapter(other, {**LORA, "target_modules": ["query"]})
    with pytest.raises(ValueError, match="is another than that of the model"):
        load_adapter(other, tmp_path / "adapter")
    with pytest.raises(ValueError, match="There is no adapter_config.json in"):
        load_adapter(tiny_model(), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "names no peft_type that is known"),
        ({"peft_type": "LORAX"}, "names no peft_type that is known. .* one of .*'IA3'.*'LORA'"),
        ({"peft_type": "LORA", "rank": 4}, "does not fit LoraConfig: .*unexpected keyword argument 'rank'"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, "PROMPT_TUNING puts tokens into the input"),
        ({"peft_type": "ADALORA", "total_step": 9}, "ADALORA needs calls of its own in every step"),
        ({"peft_type": "VBLORA", "num_vectors": 8}, "VBLORA cannot be loaded as it was saved"),
        ({"peft_type": "LORA", "init_lora_weights": "olora"}, "init_lora_weights='olora' changes the encoder's own"),
        ({"peft_type": "LORA", "layer_replication": [[0, 2]]}, "layer_replication changes the encoder's layers"),
    ],
)
def test_illegal_configurations(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        training_args(tmp_path, peft=config)


def test_configuration_of_peft_that_does_not_fit(tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="PROMPT_TUNING puts tokens into the input"):
        add_adapter(tiny_model(), PromptTuningConfig(num_virtual_tokens=2))


def test_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="Adapters need `pip install peft`."):
        training_args(tmp_path, peft=LORA)


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze": "backbone"},
        {"freeze": "heads:topic+backbone"},
        {"freeze_schedule": {0: "backbone"}},
        {"freeze": "none"},
    ],
)
def test_freezing_beside_an_adapter_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the encoder is frozen but for its adapter"):
        training_args(tmp_path, peft=LORA, **settings)


@pytest.mark.parametrize("settings", [{"peft": LORA}, {"freeze": "heads:topic"}, {"freeze_schedule": {0: "none"}}])
def test_adapter_that_is_there_goes_with_no_other_setting(
    settings: dict[str, Any], tiny_model: MakeModel, tmp_path: Path
) -> None:
    model = tiny_model()
    add_adapter(model, LORA)
    learning = _trainable(model)
    with pytest.raises(ValueError, match="The model has an adapter, and peft=.* merge the adapter first"):
        MTLTrainer(model, training_args(tmp_path, **settings))
    assert _trainable(model) == learning


def test_saving_an_adapter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_adapter is set, but no adapter trains"):
        training_args(tmp_path, save_adapter=True)


def test_adapter_of_an_earlier_run_does_not_stay_beside_another_model(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    (splits, tasks), out = toy_splits, tmp_path / "out"

    def trained(model: MTLModel, **settings: Any) -> MTLTrainer:
        trainer = MTLTrainer(model, training_args(out, max_steps=1, **settings), train_dataset=splits["train"])
        trainer.train()
        trainer.save_model()
        return trainer

    trained(tiny_model(tasks=tasks), peft=LORA, save_adapter=True)
    assert (out / "adapter" / "adapter_config.json").is_file(), "That of this very run stays."
    MTLTrainer(tiny_model(tasks=tasks), training_args(out)).save_model()
    assert (out / "adapter").is_dir(), "Nothing was trained."
    with_adapter = tiny_model(tasks=tasks)
    add_adapter(with_adapter, LORA)
    trained(with_adapter)  # Its adapter stays in it, and is saved beside what is in the folder.
    assert (out / "adapter_config.json").is_file()
    (out / "adapter" / "notes.txt").write_text("mine")
    last = trained(tiny_model(tasks=tasks))
    assert names(out) - {"training_args.json", "adapter"} == SAVED_FILES
    assert names(out / "adapter") == {"notes.txt"}
    assert_loads_as(out, last.model)


class _Keep(TrainerCallback):
    """Keeps the weights that training begins with, and its last ones."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first = _copy(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = _copy(kwargs["model"])


def _copy(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_training_moves_adapter_and_heads_and_leaves_a_merged_model(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    (splits, tasks), out = toy_splits, tmp_path / "out"
    keep, model, plain = _Keep(), tiny_model(tasks=tasks), tiny_model(tasks=tasks)
    args = training_args(
        out, peft=LORA, freeze="heads:tags", save_adapter=True, save_strategy="steps", save_steps=2, max_steps=4,
        weight_decay=0.1, layer_decay=0.9,
    )  # fmt: skip
    trainer = MTLTrainer(
        model, args, train_dataset=splits["train"], eval_dataset=splits["validation"], callbacks=[keep]
    )
    trainer.train()
    for name, value in keep.last.items():
        learns = "lora_" in name or (name.startswith("heads.") and not name.startswith("heads.tags."))
        assert torch.equal(value, keep.first[name]) != learns, name
    total = sum(value.numel() for value in keep.first.values())
    learning = sum(value.numel() for name, value in keep.first.items() if "lora_" in name or name[:6] == "heads.")
    assert trainer.freezing.num_total == total
    assert trainer.freezing.num_trainable == learning - sum(p.numel() for p in model.heads["tags"].parameters())
    assert not has_adapter(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        HEADS_NAME,
        "config.json",
        "training_args.json",
    } <= names(out / "checkpoint-4")
    assert not list((out / "checkpoint-4").glob("model*"))
    reloaded = tiny_model(tasks=tasks)
    load_adapter(reloaded, out / "adapter")
    _assert_equal(_copy(reloaded), keep.last)
    merge_adapter(reloaded)
    _assert_equal(_copy(reloaded), _copy(model))
    trainer.save_model()
    assert names(out) - {"checkpoint-2", "checkpoint-4", "adapter", "training_args.json"} == SAVED_FILES
    assert_loads_as(out, model)
    trainer.train()  # Another adapter, on the merged model.
    assert not torch.equal(output_layer(model, "topic").weight, output_layer(reloaded, "topic").weight)
    assert trainer.evaluate()["eval_topic_support"] > 0


@pytest.mark.parametrize("config", ["lora", "vera"])
def test_resuming_equals_the_unbroken_run(
    config: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    settings: dict[str, Any] = {
        "peft": {**CONFIGS[config], **({"lora_dropout": 0.1} if config == "lora" else {})},
        "average_weights": "ema:0.8",
        "weighting": "uncertainty",
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    model = tiny_model(tasks=tasks)
    MTLTrainer(model, training_args(tmp_path, **settings), train_dataset=splits["train"]).train()
    (tmp_path / "checkpoint-6" / "adapter_model.safetensors").write_bytes(b"cut")  # As an interrupted save leaves it.
    resumed = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), train_dataset=splits["train"])
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[0]["step"] == 1
    _assert_equal(_copy(resumed.model), _copy(model))
    other = training_args(tmp_path, **{**settings, "peft": {"peft_type": "IA3"}})
    with pytest.raises(ValueError, match="its peft is .*, that of this run {'peft_type': 'IA3'}"):
        MTLTrainer(tiny_model(tasks=tasks), other, train_dataset=splits["train"]).train(resume_from_checkpoint=True)


def test_adapter_learns_below_activation_checkpointing(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    runs = []
    for activation_checkpointing in (False, True):
        keep = _Keep()
        args = training_args(tmp_path, peft=LORA, activation_checkpointing=activation_checkpointing)
        MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"], callbacks=[keep]).train()
        runs.append(keep.last)
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, rtol=1e-5, atol=1e-6)


def test_best_model_with_an_adapter_is_loaded_in_full(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    add_adapter(model, LORA)  # By hand, so it is there after the training.
    args = training_args(
        tmp_path,
        max_steps=6,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="tags_loss",
        greater_is_better=True,  # The first checkpoint is the "best", unless nothing is learned.
    )
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["validation"])
    trainer.train()
    logged = evaluation_of_final_model(trainer, splits["validation"], "validation", tasks)
    assert logged is not None
    assert trainer.state.best_global_step != trainer.state.global_step
    measured = evaluate_split(trainer, splits["validation"], "validation", tasks)
    assert logged == replace(measured, seconds=logged.seconds)
    assert has_adapter(model)
    trainer.save_model(str(tmp_path / "final"))
    again = tiny_model(tasks=tasks)
    load_adapter(again, tmp_path / "final")
    _assert_equal(_copy(again), _copy(model))


def test_settings_of_an_adapter_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    text = f"tasks: [{{name: a}}]\nsources: [{{path: a.csv}}]\noutput_dir: {tmp_path}\nuse_cpu: true\n"
    (tmp_path / "run.yaml").write_text(f"{text}peft: {{peft_type: LORA, r: 4}}\n")
    assert parse_settings([str(tmp_path / "run.yaml")])[1].peft == {"peft_type": "LORA", "r": 4}
    argv = [str(tmp_path / "run.yaml"), "--peft", json.dumps(CONFIGS["ia3"])]
    assert parse_settings(argv)[1].peft == {"peft_type": "IA3"}

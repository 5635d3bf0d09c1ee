"""Objectives on the embedding in the trainer, the program, a fresh process and on two ranks."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checks import FirstGradients, training_args, without_dropout
from conftest import TOPICS, MakeModel, SaveBackbone
from fresh_process import offline_env, run_fresh
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from saved_folders import assert_loads_as

import train_trainer
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.data import SourceConfig, load_sources, tokenize_splits
from mtl.trainer import MTLTrainer
from tasks_mtl import CONTRASTIVE, POSITIVE_PAIRS, SCORED_PAIRS, TRIPLETS

ROOT = Path(__file__).parent.parent
WORKER = str(Path(__file__).parent / "similarity_worker.py")
TASKS = (
    TaskConfig("topic"),
    TaskConfig("near", SCORED_PAIRS),
    TaskConfig("found", POSITIVE_PAIRS),
    TaskConfig("third", TRIPLETS),
    TaskConfig("space", CONTRASTIVE),
)


def text_about(topic: str, rng: random.Random) -> str:
    words = rng.choices(TOPICS[topic].split(), k=3) + rng.choices(["quick", "brown", "fox", "lazy", "dog"], k=2)
    rng.shuffle(words)
    return " ".join(words)


def compared_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns texts `a`, `b` of the same topic (score 1) or not, `p` of the topic of `a`, and `n` of another one."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        topic, other, third = rng.choice(list(TOPICS)), rng.choice(list(TOPICS)), rng.choice(list(TOPICS))
        texts = {"a": text_about(topic, rng), "b": text_about(other, rng), "p": text_about(topic, rng)}
        texts["n"] = text_about(third if third != topic else next(name for name in TOPICS if name != topic), rng)
        rows.append({**texts, "topic": topic if rng.random() < 0.7 else None, "score": float(topic == other)})
    return rows


def sources(folder: Path) -> list[dict[str, Any]]:
    """Writes the rows of each split, and returns the sources of scored pairs, of triplets and of topics."""
    files = {}
    for split, count, seed in (("train", 96, 0), ("dev", 48, 1), ("test", 48, 2)):
        lines = [json.dumps(row) + "\n" for row in compared_rows(count, seed)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
        files[split] = f"{split}.jsonl"
    topics = {"topic": "topic", "space": "topic"}
    return [
        {"name": "scored", "files": files, "text": "a", "compare_with": ["b"], "labels": {"near": "score", **topics}},
        {"name": "ranked", "files": files, "text": "p", "compare_with": ["a", "n"], "pairs": ["found", "third"]},
    ]


@pytest.fixture
def splits(tmp_path: Path, tiny_tokenizer: Any) -> tuple[Any, tuple[TaskConfig, ...]]:
    configs = [SourceConfig.from_dict(source) for source in sources(tmp_path)]
    loaded, tasks = load_sources(configs, TASKS, base_dir=tmp_path)
    return tokenize_splits(loaded, tiny_tokenizer, max_length=24)[0], tasks


def test_accumulation_does_not_change_what_a_row_counts(splits: Any, tiny_model: MakeModel, tmp_path: Path) -> None:
    data, tasks = splits
    # Of what does not depend on the other rows of the micro-batch; labels are missing unevenly among them.
    chosen = [
        tasks[0],
        TaskConfig("near", SCORED_PAIRS, loss="cosine"),
        TaskConfig("third", TRIPLETS, margin=2.0),
    ]
    found = []
    for batch_size, steps in ((16, 1), (2, 8)):
        gradients = FirstGradients()
        model = without_dropout(tiny_model(tasks=chosen, head_dropout=0.0))
        args = training_args(
            tmp_path,
            max_steps=1,
            max_grad_norm=0.0,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
        )
        MTLTrainer(model, args, train_dataset=data["train"], callbacks=[gradients]).train()
        found.append(gradients.first)
    for name, gradient in found[0].items():
        # Sums of float32 in another order.
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=2e-6)


def test_an_in_batch_loss_counts_its_rows_among_those_of_the_step(
    splits: Any, tiny_model: MakeModel, tmp_path: Path
) -> None:
    data, _ = splits
    task = TaskConfig("near", SCORED_PAIRS)
    trainer = MTLTrainer(
        without_dropout(tiny_model(tasks=[task])), training_args(tmp_path), train_dataset=data["train"]
    )
    rows = [row for row in data["train"] if row["source"] == "scored"][:12]
    parts = [trainer.data_collator(some) for some in (rows[:3], rows[3:])]
    counts = trainer._get_num_items_in_batch(parts, torch.device("cpu"))
    assert counts["near"].item() == 12
    losses = [trainer.model(**part, num_items_in_batch=counts).loss for part in parts]
    own = [trainer.model(**part).loss for part in parts]
    torch.testing.assert_close(losses[0] + losses[1], (3 * own[0] + 9 * own[1]) / 12)


@pytest.mark.parametrize("loss", ["cosent", "cosine"])
def test_training_brings_the_cosines_into_the_order_of_the_scores(
    loss: str, splits: Any, tiny_model: MakeModel, tmp_path: Path
) -> None:
    data, _ = splits
    model = tiny_model(tasks=[TaskConfig("near", SCORED_PAIRS, loss=loss)])
    args = training_args(tmp_path, max_steps=40, learning_rate=3e-3, per_device_train_batch_size=16)
    trainer = MTLTrainer(model, args, train_dataset=data["train"], eval_dataset=data["test"])
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_near_spearman"] > max(0.7, before["eval_near_spearman"] + 0.2)
    assert after["eval_near_loss"] < before["eval_near_loss"]
    assert after["eval_score"] == after["eval_near_spearman"]
    rows = [row for row in compared_rows(48, 2)]
    left, right = (model.encode([row[name] for row in rows]) for name in ("a", "b"))
    cosines = (left * right).sum(axis=1)
    agree = np.array([row["score"] == 1.0 for row in rows])
    assert cosines[agree].mean() > cosines[~agree].mean() + 0.2


def test_heads_and_objectives_train_together(splits: Any, tiny_model: MakeModel, tmp_path: Path) -> None:
    data, tasks = splits
    model = tiny_model(tasks=tasks)
    args = training_args(
        tmp_path,
        max_steps=60,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        weighting="uncertainty",
        per_device_eval_batch_size=16,
    )
    trainer = MTLTrainer(model, args, train_dataset=data["train"], eval_dataset=data["test"])
    before, _, after = trainer.evaluate(), trainer.train(), trainer.evaluate()
    assert list(model.heads) == ["topic"]
    for task in tasks:
        assert after[f"eval_{task.name}_loss"] < before[f"eval_{task.name}_loss"], task.name
    for name in ("topic_accuracy", "near_spearman", "third_accuracy", "space_accuracy"):
        assert after[f"eval_{name}"] > 0.8, name
    supports = {task.name: after[f"eval_{task.name}_support"] for task in tasks}
    assert (supports["near"], supports["found"], supports["third"]) == (48, 48, 48)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert {f"loss_{task.name}" for task in tasks} <= logged.keys()
    names = ["topic_accuracy", "near_spearman", "found_accuracy", "third_accuracy", "space_accuracy"]
    assert after["eval_score"] == pytest.approx(np.mean([after[f"eval_{name}"] for name in names]))


def test_evaluation_does_not_depend_on_the_batch_size_but_for_positive_pairs(
    splits: Any, tiny_model: MakeModel, tmp_path: Path
) -> None:
    data, tasks = splits
    found = []
    for batch_size in (1, 7, 96):
        args = training_args(tmp_path, per_device_eval_batch_size=batch_size)
        metrics = MTLTrainer(tiny_model(tasks=tasks), args, eval_dataset=data["validation"]).evaluate()
        found.append(metrics)
    kept = [key for key in found[0] if key.startswith(("eval_topic", "eval_near", "eval_third", "eval_space"))]
    assert len(kept) > 12
    for other in found[1:]:
        # Sums of float32 in another order, times a scale of 20.
        assert {key: other[key] for key in kept} == pytest.approx({key: found[0][key] for key in kept}, rel=1e-3)
    # Alone in its batch a pair meets its own negative, as a triplet does, and among all rows the most.
    assert found[0]["eval_found_accuracy"] == found[0]["eval_third_accuracy"]
    assert found[0]["eval_found_loss"] < found[1]["eval_found_loss"] < found[2]["eval_found_loss"]


@pytest.mark.slow
def test_two_ranks_equal_one_process_that_accumulates(tmp_path: Path) -> None:
    """The negatives of a row are those of its micro-batch, whether that is on a rank or in a step of accumulation."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, command, accumulation in (("one", [sys.executable], 2), ("two", torchrun, 1)):
        folder = tmp_path / name
        folder.mkdir()
        arguments = [WORKER, "--folder", str(folder), "--accumulation", str(accumulation)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "log.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    expected, weights = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for key, value in expected.items():
        # AdamW divides by the root of tiny second moments, which lets float32 noise grow.
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4)
    for first, second in zip(one["history"], two["history"], strict=True):
        for key in [key for key in first if key.startswith("loss")]:
            assert second[key] == pytest.approx(first[key], rel=1e-4), key
    for key, value in one["evaluated"].items():
        if not key.endswith(("runtime", "per_second")):
            assert two["evaluated"][key] == pytest.approx(value, rel=1e-3, nan_ok=True), key


FRESH = """
from transformers import AutoModel

folder, again = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
pairs = ["price", ("match goal", "why"), "scene plot now"]
report(
    embeddings=model.encode(pairs).tolist(),
    predictions=model.predict(pairs),
    tasks=[task.to_dict() for task in model.config.tasks],
)
"""


def test_a_fresh_process_without_the_package_loads_objectives(make_model: MakeModel, tmp_path: Path) -> None:
    tasks = [
        TaskConfig("topic", num_labels=3),
        TaskConfig("near", SCORED_PAIRS, temperature=0.1),
        TaskConfig("third", TRIPLETS),
    ]
    model = make_model(tasks=tasks)
    model.save_pretrained(tmp_path / "first")
    env = offline_env(tmp_path / "home")
    got = run_fresh(FRESH, tmp_path / "first", tmp_path / "second", env=env, cwd=tmp_path / "empty")
    pairs: list[Any] = ["price", ("match goal", "why"), "scene plot now"]
    assert got["embeddings"] == model.encode(pairs).tolist()
    assert got["predictions"] == model.predict(pairs)
    assert got["tasks"] == [task.to_dict() for task in tasks]
    assert_loads_as(tmp_path / "second", model)
    assert not any("near" in name for name in MTLModel.from_pretrained(tmp_path / "second").state_dict())


def settings(folder: Path, backbone: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "backbone": str(backbone),
        "data_dir": str(folder),
        "tasks": [
            {"name": "topic"},
            {"name": "near", "problem_type": SCORED_PAIRS, "weight": 0.5},
            {"name": "found", "problem_type": POSITIVE_PAIRS, "symmetric": True},
            {"name": "third", "problem_type": TRIPLETS, "margin": 0.2},
            {"name": "space", "problem_type": CONTRASTIVE},
        ],
        "sources": sources(folder),
        "output_dir": str(folder / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "max_length": 32,
        "use_cpu": True,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return str(path)


def test_the_program(backbone_dir: SaveBackbone, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = settings(tmp_path, backbone_dir())
    report = train_trainer.main([path])
    shown = capfd.readouterr()
    assert "near spearman" in shown.out + shown.err
    assert "predicted" in shown.out
    assert report["results"]["test"]["primary_metrics"]["near"] == "spearman"
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "encoder with 1 task head on" in card.text
    assert "| `third` | triplets, loss margin | the embedding; margin 0.2 | 1.0 |" in card.text
    kinds = {result.task_name: result.task_type for result in card.data.eval_results}
    assert (kinds["topic"], kinds["near"]) == ("text-classification", "sentence-similarity")
    # A saved model goes on with other objectives; its heads stay what they are.
    objectives = [{"name": "topic", "weight": 0.5}, {"name": "space", "problem_type": CONTRASTIVE}]
    some = [{**sources(tmp_path)[0], "compare_with": [], "labels": {"topic": "topic", "space": "topic"}}]
    more = settings(
        tmp_path, tmp_path / "out", tasks=objectives, sources=some, output_dir=str(tmp_path / "more"), max_steps=1
    )
    train_trainer.main([more, "--num_samples", "1"])
    assert MTLModel.from_pretrained(tmp_path / "more").config.task_names == ["topic", "space"]


def test_the_program_on_pairs(backbone_dir: SaveBackbone, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = sources(tmp_path)[0]
    source = {**given, "compare_with": [], "text_pair": "b", "labels": {"same": "score"}}
    path = settings(
        tmp_path, backbone_dir(), tasks=[{"name": "same", "labels": ["0", "1"]}], sources=[source], num_samples=2
    )
    report = train_trainer.main([path])
    first = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
    assert report["results"]["test"]["tasks"]["same"]["support"] == 48
    assert " / " in capfd.readouterr().out
    model = MTLModel.from_pretrained(tmp_path / "out")
    assert model.predict([(first["a"], first["b"])])[0]["same"]["label"] in ("0", "1")


def test_a_run_of_objectives_alone_resumes_bit_by_bit(splits: Any, tiny_model: MakeModel, tmp_path: Path) -> None:
    data, tasks = splits
    weights = []
    for name, stop in (("whole", None), ("broken", 3)):
        folder = tmp_path / name
        common: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3}
        model = tiny_model(tasks=tasks[1:])
        trainer = MTLTrainer(model, training_args(folder, **common), train_dataset=data["train"])
        if stop is None:
            trainer.train()
        else:
            trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())

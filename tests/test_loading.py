"""Training sees every row as often as the plan says: accumulated, resumed in mid-epoch, over two ranks."""

import json
import logging
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sampling_worker import SIZES, make_rows, make_trainer, train_and_resume
from torch.utils.data import IterableDataset

from mtl.arguments import MTLTrainingArguments
from mtl.loading import make_plan

ROOT = Path(__file__).parent.parent
TOTAL = sum(SIZES.values())
EPOCHS = 3
# Rows by source that the first and third of three epochs have: n^1 throughout; of 43 rows n^(1/2) gives 5.66 : 2.83 :
# 1.73, that is 23.82, 11.91, 7.28; equal shares 14.33 each; n^0.2 in the last epoch 2.00 : 1.516 : 1.246, that is
# 18.06, 13.69, 11.25.
SHARES = {
    "none": ([32, 8, 3], [32, 8, 3]),
    "proportional": ([32, 8, 3], [32, 8, 3]),
    "temperature:2": ([24, 12, 7], [24, 12, 7]),
    "balanced": ([15, 14, 14], [15, 14, 14]),
    "annealed": ([32, 8, 3], [18, 14, 11]),
}


def by_source(rows: list[int]) -> list[int]:
    """Returns how many of the rows are of each source."""
    names = make_rows()["source"]
    counts = Counter(names[row] for row in rows)
    return [counts[name] for name in SIZES]


def check_epochs(batches: list[list[int]], mixture: str) -> None:
    """Asserts the shares of the first and last of three epochs, and that rows of a source are seen equally often."""
    rows = list(chain(*batches))
    assert len(rows) == EPOCHS * TOTAL
    epochs = [rows[epoch * TOTAL : (epoch + 1) * TOTAL] for epoch in range(EPOCHS)]
    assert (by_source(epochs[0]), by_source(epochs[2])) == SHARES[mixture]
    seen, start = Counter(rows), 0
    for count in SIZES.values():
        times = [seen[row] for row in range(start, start + count)]
        assert max(times) - min(times) <= 1
        start += count
    if mixture in ("none", "proportional"):
        assert all(sorted(epoch) == list(range(TOTAL)) for epoch in epochs)


@pytest.mark.parametrize(
    ("mixture", "homogeneous", "accumulation"),
    [
        ("proportional", False, 1),
        ("proportional", True, 3),
        ("temperature:2", False, 3),
        ("balanced", False, 1),
        ("balanced", True, 1),
        ("annealed", False, 3),
        ("annealed", True, 3),
    ],
)
def test_one_process(mixture: str, homogeneous: bool, accumulation: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "mixture": mixture,
        "homogeneous_batches": homogeneous,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": EPOCHS,
        "train_sampling_strategy": "group_by_length",
    }
    batches = len(make_plan(make_trainer(tmp_path, **settings).args, make_rows(), 4))
    steps = math.ceil(batches / accumulation)
    resume_step = steps + steps // 2  # In the middle of the second epoch.
    found = train_and_resume(tmp_path, resume_step=resume_step, **settings)
    assert len(found["whole"]) == EPOCHS * batches
    check_epochs(found["whole"], mixture)
    trained = batches + steps // 2 * accumulation
    assert found["resumed"] == found["whole"][trained:]
    whole, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    if homogeneous:
        assert all(sorted(by_source(batch))[:2] == [0, 0] for batch in found["whole"])


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    common = {"per_device_train_batch_size": 2, "num_train_epochs": EPOCHS}
    runs: list[dict[str, Any]] = [
        # 43 rows in global batches of 4 are 11 batches.
        {"mixture": "none", "resume_step": 16},
        {"mixture": "none", "train_sampling_strategy": "group_by_length", "resume_step": 16},
        {"mixture": "temperature:2", "train_sampling_strategy": "group_by_length", "resume_step": 16},
        # In threes, 4 steps.
        {"mixture": "annealed", "gradient_accumulation_steps": 3, "resume_step": 6},
        {"mixture": "proportional", "homogeneous_batches": True, "resume_step": 16},
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = ["--folder", str(tmp_path), "--settings", json.dumps([{**common, **run} for run in runs])]
    done = subprocess.run(
        [*torchrun, str(ROOT / "tests" / "sampling_worker.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for number, run in enumerate(runs):
        found = {
            name: [first + second for first, second in zip(*(rank[number][name] for rank in ranks), strict=True)]
            for name in ("whole", "resumed")
        }
        check_epochs(found["whole"], run["mixture"])
        per_epoch, accumulation = len(found["whole"]) // EPOCHS, run.get("gradient_accumulation_steps", 1)
        steps = math.ceil(per_epoch / accumulation)
        assert steps < run["resume_step"] < 2 * steps
        trained = per_epoch + (run["resume_step"] - steps) * accumulation
        assert found["resumed"] == found["whole"][trained:]
        whole, resumed = (load_file(tmp_path / str(number) / f"{name}.safetensors") for name in ("whole", "resumed"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_max_steps_sets_the_epochs_of_annealing(tmp_path: Path) -> None:
    # 43 rows are 11 batches of 4, in threes 4 steps: 9 steps end in the third epoch.
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 9}
    trainer = make_trainer(tmp_path, mixture="annealed", **settings)
    assert make_plan(trainer.args, make_rows(), 4).num_epochs == 3
    trainer.train()
    rows = list(chain(*trainer.rows))
    assert by_source(rows[:TOTAL]) == [32, 8, 3]
    assert len(rows) == 2 * TOTAL + 12


def test_smaller_batch_that_was_found_is_planned_anew(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, mixture="balanced", auto_find_batch_size=True, per_device_train_batch_size=9, num_train_epochs=1
    )
    step = trainer.training_step

    def fail_on_many(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > 8:
            raise RuntimeError("CUDA out of memory.")
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = fail_on_many  # type: ignore[method-assign]
    trainer.train()
    # Where 9 rows do not fit, 8 are tried: a tenth less.
    assert max(map(len, trainer.rows)) <= 8
    assert by_source(list(chain(*trainer.rows))) == [15, 14, 14]


def test_start_tells_rows_shares_and_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, mixture="annealed", num_train_epochs=3, per_device_train_batch_size=8)
    with caplog.at_level(logging.INFO, "mtl.loading"):
        make_plan(trainer.args, make_rows(), 8)
    assert "43 rows and 6 batches an epoch" in caplog.text
    # 18 of 43 rows are 41.9 %, and 18 / 32 = 0.56; 11 of 43 are 25.6 %, and 11 / 3 = 3.67.
    assert "source large: 32 rows, share 74.4% to 41.9%, 1.00 to 0.56 passes an epoch" in caplog.text
    assert "source small: 3 rows, share 7.0% to 25.6%, 1.00 to 3.67 passes an epoch" in caplog.text


def test_one_process_without_a_mixture_keeps_the_sampler_of_the_base_class(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert type(trainer.get_train_dataloader().batch_sampler) is torch.utils.data.BatchSampler


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": "temperatur:2"}, "mixture 'temperatur:2' is unknown"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last is not supported"),
        ({"mixture": "balanced", "train_sampling_strategy": "sequential"}, "'sequential' stands against mixture"),
        ({"homogeneous_batches": True, "train_sampling_strategy": "batch_rebalance"}, "'batch_rebalance' stands"),
        ({"mixture": "annealed", "homogeneous_batches": True, "max_steps": 5}, "Set num_train_epochs instead"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        MTLTrainingArguments(str(tmp_path), use_cpu=True, **settings)


def test_other_mixture_does_not_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"per_device_train_batch_size": 8, "save_steps": 2}
    make_trainer(tmp_path, mixture="balanced", max_steps=2, save_strategy="steps", **settings).train()
    with pytest.raises(ValueError, match="its mixture is balanced, that of this run annealed"):
        make_trainer(tmp_path, mixture="annealed", max_steps=4, **settings).train(str(tmp_path / "checkpoint-2"))


def test_order_that_is_not_resumed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # 43 rows are 6 batches of 8: step 3 is in the first epoch, step 8 in the second.
    settings: dict[str, Any] = {"per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length"}
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8}
    make_trainer(tmp_path, **settings, **saving).train()
    said = []
    for step in (3, 6, 8):
        caplog.clear()
        make_trainer(tmp_path, max_steps=9, **settings).train(str(tmp_path / f"checkpoint-{step}"))
        said.append("The rest of epoch 2 comes in another order" in caplog.text)
    assert said == [False, False, True]


class _Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from make_rows()


def test_data_that_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, mixture="balanced", max_steps=1)
    trainer.train_dataset = make_rows().remove_columns("source")
    with pytest.raises(ValueError, match="need column 'source' in the training data, but it is of type Dataset"):
        trainer.train()
    trainer.train_dataset = _Stream()
    with pytest.raises(ValueError, match="is of type _Stream, without a length"):
        trainer.train()
    trainer.train_dataset = Dataset.from_dict({"source": [], "input_ids": [], "label_topic": []})
    with pytest.raises(ValueError, match="has 0 rows, fewer than the 1 processes"):
        trainer.train()
    split = make_trainer(tmp_path, mixture="balanced", max_steps=1, accelerator_config={"split_batches": True})
    with pytest.raises(ValueError, match="split_batches and dispatch_batches have no effect"):
        split.train()

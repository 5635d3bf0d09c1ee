"""Shows what each setting of `freeze` lets learn, then trains with one and compares every tensor before and after.

    python examples/choose_what_to_freeze.py
    python examples/choose_what_to_freeze.py --freeze lower_layers:2

A few steps on a slice of the embedded corpus: too few for a good model. docs/transfer.md tells what to take when.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import DatasetDict
from transformers.utils import logging

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.data import SourceConfig, load_sources, tokenize_splits
from mtl.freezing import apply_freezing
from mtl.settings import resolve_backbone
from mtl.trainer import MTLTrainer

CORPUS = Path(__file__).resolve().parent.parent / "data" / "vader" / "vader.parquet"


def main(argv: Sequence[str] | None = None) -> dict[str, bool]:
    """Prints what every setting trains, trains with one, and returns for each tensor whether it changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="embedded", help="Name on the Hub, folder, or 'embedded' (the default).")
    parser.add_argument("--freeze", default="backbone", help="The setting to train with; any of those listed but all.")
    parser.add_argument("--steps", type=int, default=8, help="Optimizer steps, of 8 sentences each.")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()  # The load report lists the pooler, which is left out on purpose.
    source = SourceConfig(path=str(CORPUS), split_column="split", labels={"topic": "topic", "sentiment": "sentiment"})
    splits, tasks = load_sources([source], [TaskConfig("topic"), TaskConfig("sentiment")])
    rows = DatasetDict(train=splits["train"].shuffle(seed=0).select(range(256)))
    model = MTLModel.from_backbone(resolve_backbone(args.backbone), tasks=tasks)
    for setting in ("none", "all", "backbone", "heads:topic", "heads_except:sentiment", "lower_layers:2"):
        print(apply_freezing(model, setting))

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens, _ = tokenize_splits(rows, model.tokenizer, max_length=64)
    with tempfile.TemporaryDirectory() as folder:
        settings = MTLTrainingArguments(folder, freeze=args.freeze, max_steps=args.steps, learning_rate=1e-3)
        MTLTrainer(model, settings, train_dataset=tokens["train"]).train()

    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    changed = {name: not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}
    print(f"\nAfter {args.steps} steps with freeze={args.freeze}:")
    for kind, names in (("frozen", frozen), ("other", changed.keys() - set(frozen))):
        print(f"  {sum(changed[name] for name in names)} of {len(names)} {kind} tensors changed")
    return changed


if __name__ == "__main__":
    main()

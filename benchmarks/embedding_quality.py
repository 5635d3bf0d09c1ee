"""Measures what training heads makes of the embedding of the embedded default, with and without preserving it.

python benchmarks/embedding_quality.py --data-dir <folder> --write docs/embeddings.md

Each weight of `preserve_embeddings` is one training of configs/vader.yaml. The embedding is then measured on two sets
of texts: the test split of that corpus, and the test rows of CLINC150, which no training saw and whose intents no head
knows. The scored pairs are drawn from these: 2 for one intent, 1 for two intents of one domain, 0 for two domains.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from documents import write_json
from intent_rows import intent_rows
from records import add_options, begin, markdown_table, record, show

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.embedding_quality import embedding_quality
from mtl.scored_pairs import ScoredPairs
from mtl.settings import parse_settings, resolve_backbone
from train_setup import read_sources

NAME = "embedding_quality"
WEIGHTS = (0.0, 1.0)
OWN, OTHER = "vader", "clinc150"
OTHER_TASKS = ("clinc", "clinc_domain")
PAIRS_OF_A_GRADE = 500


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains and measures the weights that the report does not have yet, then shows it; returns it."""
    args = _parser().parse_args(argv)
    if args.data_dir is not None:
        measure(args)
    elif not (args.table or args.write):
        raise SystemExit("--data-dir is needed to measure: the folder of the data sets.")
    return show(args, tables, NAME)


def measure(args: argparse.Namespace) -> None:
    """Runs the weights that the report does not have yet, and writes it after each one."""
    report = begin(args, seed=args.seed, pairs_of_a_grade=PAIRS_OF_A_GRADE)
    done = [run["weight"] for run in report["runs"]]
    for weight in [weight for weight in args.weights if weight not in done]:
        print(f"preserve_embeddings: {weight:g}", flush=True)
        folder = args.work_dir / f"weight-{weight:g}-seed-{args.seed}"
        training = ["--preserve_embeddings", str(weight), "--seed", str(args.seed)]
        figures = record(args, f"preserve_embeddings: {weight:g}", folder, training, save=True)
        report["runs"].append({"weight": weight, **figures, "embedding": embeddings(args, folder)})
        write_json(report, args.output)


def embeddings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the figures of a trained model's embedding on both sets of texts, less the map."""
    after = MTLModel.from_pretrained(folder)
    settings, training = parse_settings([str(args.settings)])
    config: Any = after.config
    shape = {"pooling": config.pooling, "max_seq_length": config.max_seq_length}
    before = MTLModel.from_backbone(resolve_backbone(settings.backbone), tasks=config.tasks, **shape)
    own, tasks = read_sources(settings, training, settings.task_configs(), taught=())
    unknown = [TaskConfig(name, out_of_scope_label="oos") for name in OTHER_TASKS]
    other, intents = intent_rows(unknown, args.data_dir)
    found = {
        OWN: embedding_quality(before, after, _some(own["test"], args.limit), tasks),
        OTHER: embedding_quality(
            before,
            after,
            _some(other["test"], args.limit),
            intents,
            pairs=graded_pairs(other["test"], PAIRS_OF_A_GRADE, seed=0),
        ),
    }
    return {name: {key: value for key, value in quality.items() if key != "map"} for name, quality in found.items()}


def _some(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.shuffle(seed=0).select(range(min(limit, len(rows))))


def graded_pairs(rows: Dataset, count: int, *, seed: int) -> ScoredPairs:
    """Draws pairs of rows in scope: as many of one intent (2), of one domain alone (1), and of two domains (0).

    Args:
        rows: Rows with the label columns of intent and domain.
        count: Pairs of each grade.
        seed: Seed of the draw.
    """
    intents, domains = (np.asarray(rows[f"label_{name}"]) for name in OTHER_TASKS)  # (N,) each
    inside = np.flatnonzero(intents >= 0)
    rng = np.random.default_rng(seed)
    grades = [
        (2.0, lambda a, b: (intents[a] == intents[b]) & (a != b)),
        (1.0, lambda a, b: (intents[a] != intents[b]) & (domains[a] == domains[b])),
        (0.0, lambda a, b: domains[a] != domains[b]),
    ]
    chosen: list[npt.NDArray[np.int64]] = []
    for _, holds in grades:
        found = np.empty((0, 2), np.int64)
        while len(found) < count:  # Of two rows drawn at random, one pair in 150 is of one intent.
            drawn = rng.choice(inside, size=(100 * count, 2))
            found = np.concatenate([found, drawn[holds(*drawn.T)]])
        chosen.append(found[:count])
    texts = rows["text"][:]
    first, second = ([texts[row] for row in column] for column in np.concatenate(chosen).T)
    return ScoredPairs(OTHER, first, second, np.repeat([grade for grade, _ in grades], count))


def tables(report: Mapping[str, Any]) -> str:
    """Returns the embedding's figures and the heads' as Markdown, and a line on the machine."""
    runs = sorted(report["runs"], key=lambda run: run["weight"])
    lines = [("before training", "before", runs[0])]
    lines += [(f"`preserve_embeddings: {run['weight']:g}`", "after", run) for run in runs]
    metrics = runs[0]["primary_metrics"]
    purity = list(runs[0]["embedding"][OWN]["after"]["purity"])
    heading = ["", *(f"{task}, {metric}" for task, metric in metrics.items())]
    heading += [*(f"purity, {task}" for task in purity), "uniformity"]
    own = [_own_cells(title, key, run, purity, metrics) for title, key, run in lines]
    other_heading = ["", "Spearman", *(f"purity, {task}" for task in OTHER_TASKS), "uniformity"]
    other = [_other_cells(title, key, run) for title, key, run in lines]
    own_title = "On the test split of the corpus that the heads learned:"
    other_title = "On the test rows of CLINC150, of which training saw nothing:"
    parts = [own_title, markdown_table(heading, own), other_title, markdown_table(other_heading, other)]
    return "\n\n".join([*parts, _circumstances(runs[0], report["settings"])])


def _own_cells(
    title: str, key: str, run: Mapping[str, Any], purity: Sequence[str], metrics: Mapping[str, str]
) -> list[str]:
    figures = run["embedding"][OWN][key]
    reached = [_cell(run["results"]["test"]["tasks"][task]) if key == "after" else "-" for task in metrics]
    nearest = [_cell(figures["purity"][task]["value"]) for task in purity]
    return [title, *reached, *nearest, _cell(figures["uniformity"])]


def _other_cells(title: str, key: str, run: Mapping[str, Any]) -> list[str]:
    figures = run["embedding"][OTHER][key]
    nearest = [_cell(figures["purity"][task]["value"]) for task in OTHER_TASKS]
    return [title, _cell(figures["similarity"]["spearman"]), *nearest, _cell(figures["uniformity"])]


def _circumstances(run: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    machine, versions = run["machine"], run["versions"]
    rows = run["results"]["test"]["rows"]
    is_trial = settings["max_steps"] is not None or settings["limit"] is not None
    return (
        f"One training each, seed {settings['seed']}. Tasks are measured on {rows:,} test rows. "
        f"{machine['cpu']}, {run['precision']}, torch {versions['torch']}, transformers {versions['transformers']}."
    ) + " A trial run: the figures say nothing." * is_trial


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, NAME)
    add = parser.add_argument
    add("--data-dir", help="Folder of the data sets; without it only the report is shown.")
    add("--weights", type=float, nargs="+", default=list(WEIGHTS), help="Weights of `preserve_embeddings`.")
    add("--seed", type=int, default=0, help="Seed of the trainings.")
    return parser


if __name__ == "__main__":
    main()

"""Measures how many tokens a batch should have at most, `max_batch_tokens`, for the model and each of its exports.

    python benchmarks/batch_tokens.py outputs/vader --write docs/inference.md   # some minutes, after `make train`
    python benchmarks/batch_tokens.py --table                                   # the table of the JSON file

Embedding and all tasks for sentences of the embedded corpus. All take turns, after a run that is not measured; a speed
is the median of the ratios to the default within a repeat, so that both saw the same machine.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from documents import add_report_options, show_report, write_json
from freezing_run import machine
from records import markdown_table
from turns import RUNTIMES, drawn_sentences, in_turns

from modeling_mtl import MTLModel
from predictor_mtl import MANIFEST, MTLPredictor, read_manifest

NAME = "batch_tokens"
DEFAULT = "default"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, or shows what was measured before; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", type=Path, nargs="?", help="Folder of the model, with the graphs that were exported of it.")
    add("--tokens", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192], help="Tokens of a batch at most.")
    add("--sentences", type=int, default=1000, help="Sentences, drawn at random.")
    add("--repeats", type=int, default=3, help="Runs of each.")
    add_report_options(parser, NAME)
    options = parser.parse_args(argv)
    if not options.table:
        if options.model is None:
            parser.error("name the folder of the model")
        write_json(measure(options), options.output)
    return show_report(options, NAME, table)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all of them with each budget, in turns, and returns the report."""
    sentences = drawn_sentences(options.sentences)
    model = MTLModel.from_pretrained(options.model)
    answers: dict[str, Callable[..., Any]] = {
        f"torch, {precision}": partial(model.encode_and_predict, sentences, precision=precision)
        for precision in ("fp32", "bf16")
    }
    for graph in read_manifest(options.model)["graphs"] if (options.model / MANIFEST).is_file() else []:
        predictor = MTLPredictor(options.model, backend=graph["backend"], precision=graph["precision"])
        name = f"{RUNTIMES[graph['backend']]}, {graph['precision']}"
        answers[name] = partial(predictor.encode_and_predict, sentences)
    budgets = {DEFAULT: None, **{str(tokens): tokens for tokens in options.tokens}}
    seconds = {
        name: in_turns({key: partial(answer, max_batch_tokens=most) for key, most in budgets.items()}, options.repeats)
        for name, answer in answers.items()
    }
    return {"sentences": len(sentences), "tokens": options.tokens, "seconds": seconds, "machine": machine("cpu")}


def table(report: Mapping[str, Any]) -> str:
    """Returns the speed with each budget, as a share of that with the default, as Markdown."""
    rows = []
    for name, seconds in report["seconds"].items():
        of_default = seconds[DEFAULT]
        ratios = [[a / b for a, b in zip(of_default, seconds[str(n)], strict=True)] for n in report["tokens"]]
        rate = f"{report['sentences'] / statistics.median(of_default):,.0f}"
        rows.append([name, rate, *(f"{statistics.median(some):.2f}x" for some in ratios)])
    heading = ["", "Sentences/s with the default", *(f"{tokens:,}" for tokens in report["tokens"])]
    where, repeats = report["machine"], len(next(iter(report["seconds"].values()))[DEFAULT])
    note = f"{report['sentences']:,} sentences, medians of {repeats}. {where['cpu']}, {where['threads']} threads."
    return f"{markdown_table(heading, rows)}\n\n{note}"


if __name__ == "__main__":
    main()

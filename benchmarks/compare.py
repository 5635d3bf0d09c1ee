"""Compares the multi-task model with a model a task, on the embedded corpus and on the intents, with several seeds.

python benchmarks/compare.py --name vader --write docs/comparison.md
python benchmarks/compare.py --name intents --data-dir <folder> --write docs/comparison.md

It runs `mtl compare`, which goes on where it was interrupted, keeps what that found in
benchmarks/results/compare-<name>.json, and puts the tables between the markers of that name, with pictures that lie
beside the document. The folder of the intents is that of configs/intents.yaml. Settings after -- go to the command,
such as -- --num_train_epochs 2 --pairs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from documents import environment, settings_that_count, write_between, write_json
from seeds import ROOT

from mtl.comparison_tables import comparison_tables
from mtl.figure_style import png_bytes
from mtl.figures import report_plots

SETTINGS = {"vader": "configs/vader.yaml", "intents": "configs/intents.yaml"}
OF_BENCHMARK: dict[str, tuple[str, ...]] = {
    "vader": (),
    # Eighteen trainings of 22 million parameters: half the epochs of the settings, as fairly for all of them.
    "intents": ("--num_train_epochs", "2"),
}
"""What the command has beside a settings file, before the overrides."""


def main(argv: Sequence[str] | None = None) -> None:
    """Compares, or shows what was compared before, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--name", choices=list(SETTINGS), default="vader", help="What is compared.")
    add("--data-dir", help="Folder of the intents.")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--output", type=Path, help="The file of results; benchmarks/results/compare-<name>.json if not given.")
    add("--work-dir", type=Path, help="Where the trainings write; outputs/compare-<name> if not given.")
    add("--table", action="store_true", help="Train nothing, only show and write what the file has.")
    add("--write", type=Path, help="File with the markers between which the tables go.")
    add("overrides", nargs="*", help="Further settings, after --, as for `mtl compare`.")
    options = parser.parse_args(argv)
    output = options.output or ROOT / "benchmarks" / "results" / f"compare-{options.name}.json"
    if not options.table:
        if options.name == "intents" and options.data_dir is None:
            parser.error("--data-dir is needed to train: the folder of the intents.")
        write_json(compare(options), output)
    comparison = json.loads(output.read_text(encoding="utf-8"))
    text = comparison_tables(comparison)
    sys.stdout.write(text + "\n")
    if options.write is not None:
        marker = f"compare-{options.name}"
        pictures = write_pictures(comparison, options.write.parent, marker)
        write_between(options.write, f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->", text + pictures)


def write_pictures(comparison: dict[str, Any], folder: Path, marker: str) -> str:
    """Draws what a comparison found into PNG files of a folder; returns Markdown that shows them."""
    shown = []
    for plot in report_plots({}, comparison):
        file = folder / f"{marker}-{plot.name}.png"
        file.write_bytes(png_bytes(plot.figure))
        shown.append(f"\n\n![{plot.alt}]({file.name})")
    return "".join(shown)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command in a process of its own; returns what it found, with the settings that it was found with."""
    settings, folder = SETTINGS[options.name], options.work_dir or ROOT / "outputs" / f"compare-{options.name}"
    further = [*OF_BENCHMARK[options.name], *options.overrides]
    places = ["--output_dir", str(folder), *(["--data_dir", options.data_dir] if options.data_dir else [])]
    command = [sys.executable, "-m", "mtl.cli", "compare", settings, "--seeds", *map(str, options.seeds)]
    subprocess.run([*command, *places, *further], cwd=ROOT, check=True, env=environment(HF_HUB_OFFLINE="1"))
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return {"settings": {"config": settings_that_count(ROOT / settings), "overrides": further}, **found}


if __name__ == "__main__":
    main()

"""Trains one model on three intent data sets, five heads, with several seeds, and writes what each reached on test.

python benchmarks/intents.py --data-dir <folder> --seeds 0 1 2 --write README.md

The folder holds clinc150/clinc150.parquet, hwu64/hwu64.parquet and banking77/banking77.parquet, each with a column
`split`; configs/intents.yaml says where they come from. With --output benchmarks/results/intents-<name>.json and
further settings after -- a try stands beside the others.
"""

import argparse

from seeds import add_options, measure

SETTINGS = "configs/intents.yaml"
COLUMNS = tuple((name, "accuracy") for name in ("clinc", "hwu", "banking", "clinc_domain", "hwu_scenario"))


def main(argv: list[str] | None = None) -> None:
    """Runs the seeds that the results file does not have yet, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="Folder of the data sets.")
    add_options(parser, "intents.json")
    options = parser.parse_args(argv)
    measure(options, SETTINGS, COLUMNS, ["--data_dir", options.data_dir])


if __name__ == "__main__":
    main()

"""Trains the embedded default with several seeds and writes what each reached on test: the table of the README.

python benchmarks/embedded.py --seeds 0 1 2 --write README.md

The precision is that of the processor; with --output benchmarks/results/embedded-fp32.json, say, the figures of
another one (-- --precision fp32) stand beside them, and go between markers of that file's name.
"""

import argparse

from seeds import add_options, measure

SETTINGS = "configs/vader.yaml"
COLUMNS = (("topic", "accuracy"), ("sentiment", "accuracy"), ("valence", "pearson"))


def main(argv: list[str] | None = None) -> None:
    """Runs the seeds that the results file does not have yet, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "embedded.json")
    measure(parser.parse_args(argv), SETTINGS, COLUMNS)


if __name__ == "__main__":
    main()

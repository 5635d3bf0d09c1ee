"""`mtl encode MODEL FILE ... --output OUT.parquet`: the embedding of every row of files of any size.

    mtl encode outputs/vader "corpus/*.parquet" --keep id --output embeddings.parquet

As `mtl predict`, with a column `embedding` alone.
"""

from collections.abc import Sequence

from mtl.commands.predict import bulk_parser, run_command


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with model or files ends it with the message alone."""
    run_command(bulk_parser("mtl encode", "Embeds the rows of files, into a Parquet file."), argv, predictions=False)

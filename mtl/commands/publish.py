"""`mtl publish MODEL DIR`: a saved model as one folder that several libraries load.

    mtl publish outputs/vader published
    mtl publish outputs/vader published --classifiers sentiment --push you/vader

Card, pictures and exported graphs of the model come along. `mtl verify DIR` proves what was made.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import logging as transformers_logging

from mtl.commands import SEVERAL
from mtl.published_files import tree_files
from mtl.publishing import check_publishable, publish, push
from mtl.saved_models import load_config, load_model
from train_trainer import or_exit

PROGRAM = "mtl publish"


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with the model or the folder ends it with the message alone."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    folder = or_exit(PROGRAM, lambda: write(options))
    files = dict(tree_files(folder))
    size = sum(path.stat().st_size for path in files.values())
    print(f"{len(files)} files, {size / 2**20:.1f} MiB, are in {folder}. Prove them: mtl verify {folder}")
    if options.push is not None:
        settings = {name: getattr(options, name) for name in ("private", "revision", "replace_card")}
        address = or_exit(PROGRAM, lambda: push(folder, options.push, **settings))
        print(f"Pushed: {address}")


def write(options: argparse.Namespace) -> Path:
    """Loads the model and writes the folder; returns it.

    Args:
        options: What the command line says.

    Raises:
        OSError: If there is no such model, or the folder is there and is not one of this command.
        ValueError: If the model cannot be published.
    """
    check_publishable(load_config(options.model))
    source = options.model if Path(options.model).is_dir() else snapshot_download(options.model)
    settings = {"source": source, "classifiers": options.classifiers, "repo_id": options.push}
    return publish(load_model(str(source)), options.folder, **settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Writes a saved model as one folder that sentence-transformers, transformers and others load.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="Folder, or name on the Hub, of a saved multi-task model.")
    add("folder", help="Folder to make; an earlier one of this command is replaced, any other is left alone.")
    add("--classifiers", **SEVERAL, default=[], metavar="TASK", help="Tasks to add as classifiers: tasks/<task>.")
    add("--push", metavar="REPO", help="Repository to upload the folder to, as owner/name.")
    add("--private", action="store_true", default=None, help="Make the repository private, if it is new.")
    add("--revision", metavar="BRANCH", help="Branch to push to; made if it is not there.")
    add("--replace_card", action="store_true", help="Push the card also where the repository has one.")
    return parser


if __name__ == "__main__":
    cli()

"""`mtl verify DIR|REPO`: whether strangers get from a folder or repository what its author has.

    mtl verify published --trust_remote_code
    mtl verify you/vader --revision v1.0 --json verification.json

Ends with 0 if all is well, 1 if something failed, and 2 if it was called wrongly.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from mtl.verification import TIMEOUT, Verification, verify
from mtl.verification_tables import verification_tables

PROGRAM = "mtl verify"
_FAILED, _WRONG_USE = 1, 2


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command, shows what it found, and ends the process with the code that says it."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        found = run(options)
        if options.json is not None:
            Path(options.json).write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        sys.exit(_WRONG_USE)
    print(verification_tables(found))
    if not found.is_ok or (options.strict and not found.is_complete):
        sys.exit(_FAILED)


def run(options: argparse.Namespace) -> Verification:
    """Verifies what the options name; a repository is downloaded first, all of it.

    Args:
        options: What the command line says.

    Raises:
        OSError: If there is no such folder or repository.
        ValueError: If it is not that of a multi-task model.
    """
    settings = {"trust_remote_code": options.trust_remote_code, "timeout": options.timeout}
    if Path(options.source).is_dir():
        if options.revision is not None:
            raise ValueError(f"--revision is of a repository, but {options.source!r} is a folder. Leave it out.")
        return verify(options.source, **settings)
    try:
        commit = HfApi().model_info(options.source, revision=options.revision).sha
        folder = snapshot_download(options.source, revision=commit)
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise OSError(f"There is no folder {options.source!r}, and no such repository was found: {error}") from error
    return verify(folder, source=options.source, revision=commit, **settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Proves that every library loads a folder or repository, to equal answers, and lists its files.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="DIR|REPO", help="Folder of a published or saved model, or its name on the Hub.")
    add("--revision", help="Branch, tag or commit of the repository.")
    add(
        "--trust_remote_code",
        "--trust-remote-code",
        action="store_true",
        help="Also run the loaders that run code of the folder.",
    )
    add("--strict", action="store_true", help="Fail also where a loader is not run, or its package is missing.")
    add("--json", metavar="FILE", help="Write all that was found to this file.")
    add("--timeout", type=float, default=TIMEOUT, help="Seconds that one loader may take; %(default).0f if not given.")
    return parser


if __name__ == "__main__":
    cli()

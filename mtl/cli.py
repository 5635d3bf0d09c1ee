"""The command `mtl`: one name for what the package does on a command line.

    mtl train configs/vader.yaml --seed 1

Each command is a module with a function `cli`, which is imported when it is asked for.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("train_trainer", "train, measure and save a model; the same as train_trainer.py"),
    "evaluate": ("mtl.commands.evaluate", "measure a saved model on labelled data"),
    "predict": ("mtl.commands.predict", "predict every task for files of any size"),
    "encode": ("mtl.commands.encode", "embed files of any size"),
    "report": ("mtl.commands.report", "make one page of the figures of a run"),
    "merge": ("merge_models", "distil several classifiers into one model; the same as merge_models.py"),
    "compare": ("mtl.commands.compare", "train the tasks in one model and each alone, and say whether sharing helps"),
    "publish": ("mtl.commands.publish", "write a model as one folder that several libraries load, and push it"),
    "verify": ("mtl.commands.verify", "prove that every library loads a folder or repository, to equal answers"),
    "export": ("mtl.commands.export", "write a graph that ONNX Runtime or OpenVINO runs without torch, also in int8"),
    "distill-static": ("mtl.commands.distill_static", "distil a student without layers, and measure what it loses"),
    "bench": ("mtl.commands.bench", "measure which runtime and precision answer fastest on this machine"),
    "export-task": ("mtl.commands.export_task", "write one task as a plain classifier that needs none of our code"),
}
"""Name of each command -> its module, and what it does."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that is named first, with the arguments after it.

    Args:
        argv: The command line after the program's name; that of the process if not given.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        _parser().print_help(sys.stderr)
        sys.exit(2)
    args = _parser().parse_args(argv[:1])
    module, _ = COMMANDS[args.command]
    try:
        importlib.import_module(module).cli(argv[1:])
    except KeyboardInterrupt:
        print(f"mtl {args.command}: interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # Who reads the output, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # What is left is written when Python ends.
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<14} {does}" for name, (_, does) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="mtl",
        usage="mtl <command> [arguments]",
        description="Multi-task sentence transformers.",
        epilog="\n".join(["commands:", *lines, "", "`mtl <command> --help` tells what a command takes."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="command", help="One of those below.")
    return parser


if __name__ == "__main__":
    main()

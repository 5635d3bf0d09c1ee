"""`mtl export-task MODEL TASK DIR`: one task as a plain classifier, for pipelines and servers without our code.

    mtl export-task outputs/vader sentiment outputs/vader-sentiment

Then `pipeline("text-classification", model="outputs/vader-sentiment")`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from transformers.utils import logging as transformers_logging

from mtl.card_origin import find_origin
from mtl.saved_models import load_model
from mtl.sequence_card import SavedClassifier
from mtl.sequence_folder import save_sequence_classification
from train_trainer import or_exit

PROGRAM = "mtl export-task"


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; a task that no plain classifier can have ends it with the message alone."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    saved = or_exit(PROGRAM, lambda: export_task(options))
    more = f" with {saved.added_layers} layer more than the encoder" if saved.added_layers else ""
    told = ", ".join(f"{value:.1e} in {name}" for name, value in saved.differences.items())
    print(f"{saved.folder} is a {saved.class_name}{more}. Its logits differ from the model's, relatively, by {told}.")


def export_task(options: argparse.Namespace) -> SavedClassifier:
    """Writes the classifier that the options name.

    Args:
        options: What the command line says.

    Raises:
        FileExistsError: If another model than a classifier is in the folder.
        OSError: If there is no such model.
        ValueError: If there is no such task, or no plain classifier can have it.
    """
    model = load_model(options.model)
    if options.task not in model.config.task_names:
        raise ValueError(f"There is no task {options.task!r} in {options.model!r}. It has {model.config.task_names}.")
    return save_sequence_classification(model, options.task, options.folder, origin=find_origin(options.model))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Writes one task as a plain sequence classifier.")
    add = parser.add_argument
    add("model", help="Folder, or name on the Hub, of a saved multi-task model.")
    add("task", help="Name of the task.")
    add("folder", help="Where the classifier goes.")
    return parser


if __name__ == "__main__":
    cli()

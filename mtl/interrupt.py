"""What Ctrl-C does to a training: it ends after the step that runs, with a checkpoint to go on from."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def checkpoint_when_interrupted(trainer: Trainer) -> Iterator[None]:
    """Lets the first Ctrl-C, or SIGTERM, write a checkpoint after the step that runs; a second one ends at once.

    Either way the training ends with a `KeyboardInterrupt`. Where several processes train, or outside the main thread,
    nothing changes: a signal reaches processes at different steps, so that they would wait for each other.

    Args:
        trainer: What trains inside the context.
    """
    if trainer.args.world_size > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = _Interrupted()
    before = {number: signal.signal(number, callback.take) for number in _SIGNALS}
    trainer.add_callback(callback)
    try:
        yield
    finally:
        trainer.remove_callback(callback)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Interrupted(TrainerCallback):
    def __init__(self) -> None:
        self.is_asked = False

    def take(self, number: int, frame: Any) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        logger.warning("Interrupted: a checkpoint is written after this step. Once more ends the run at once.")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Asks for the checkpoint."""
        control.should_save |= self.is_asked
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends the training, once the checkpoint is complete."""
        if self.is_asked:
            raise KeyboardInterrupt

"""Experiment trackers, the services of `report_to`: what they hear of a training, and what not."""

import contextlib
from collections.abc import Iterator

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler

TRACKERS = tuple(INTEGRATION_TO_CALLBACK.values())


@contextlib.contextmanager
def without_trackers(handler: CallbackHandler) -> Iterator[None]:
    """Keeps what a trainer predicts from its trackers.

    Training has ended by then, and with it the run: trackio, wandb and others would begin a second one for figures
    that the report has anyway.

    Args:
        handler: What tells the callbacks of a trainer.
    """
    callbacks = handler.callbacks
    handler.callbacks = [callback for callback in callbacks if not isinstance(callback, TRACKERS)]
    try:
        yield
    finally:
        handler.callbacks = callbacks

"""Packages that only some features need: imported when they are used, and asked for by the name of their extra."""

import importlib
from typing import Any


def require(module: str, *, extra: str, what: str) -> Any:
    """Imports a module of an extra.

    Args:
        module: Name of the module, which is that of its package.
        extra: The extra of this package that brings it.
        what: What needs it, as the beginning of a sentence.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{what} needs {module}: `pip install "mtl-sentence-transformers[{extra}]"`.') from error

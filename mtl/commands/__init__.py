"""The commands of `mtl` that are no program of their own: thin shells over the other modules."""

from typing import Any

SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend"}
"""What makes an option take several values, and more of them where it is given again."""

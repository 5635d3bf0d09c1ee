"""Texts of users as Markdown that shows them as they are: labels, names and settings may hold any characters."""

import re

# What makes emphasis, links, code, formulas, HTML and entities; inside of a word `_` does nothing.
_SPECIAL = re.compile(r"[\\`*<>~&$]|\]\(|(?<!\w)_|_(?!\w)")


def literal(text: object) -> str:
    """Returns a text as one line, as code where Markdown would take it for something else."""
    line = " ".join(str(text).split())
    if not _SPECIAL.search(line):
        return line
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""  # One at each end is not part of the code.
    return f"{ticks}{space}{line}{space}{ticks}"


def cell(text: str) -> str:
    """Returns Markdown as the cell of a table, which is one line, and ends at a bar."""
    return " ".join(text.split()).replace("|", "\\|")


def code_block(code: str, language: str = "") -> str:
    """Returns a block of code, between fences that the code does not have."""
    fence = "`" * max(3, _longest_run(code) + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)

"""Texts of users as Markdown that shows them as they are: labels, names and settings may hold any characters."""

import re

# What makes emphasis, links, code, formulas, HTML and entities; inside of a word `_` does nothing.
_SPECIAL = re.compile(r"[\\`*<>~&$]|\]\(|(?<!\w)_|_(?!\w)")


def literal(text: object) -> str:
    """Returns a text as one line, as code where Markdown would take it for something else."""
    line = _one_line(text)
    return code(line) if _SPECIAL.search(line) else line


def code(text: object) -> str:
    """Returns a text as one line of code."""
    line = _one_line(text)
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""  # One at each end is not part of the code.
    return f"{ticks}{space}{line}{space}{ticks}"


def cell(text: str) -> str:
    """Returns Markdown as the cell of a table, which is one line, and ends at a bar."""
    return _one_line(text).replace("|", "\\|")


def code_block(lines: str, language: str = "") -> str:
    """Returns a block of code, between fences that the code does not have."""
    fence = "`" * max(3, _longest_run(lines) + 1)
    return f"{fence}{language}\n{lines}\n{fence}"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)

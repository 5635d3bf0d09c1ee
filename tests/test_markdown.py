"""Arbitrary texts as Markdown: shown as they are, whatever they hold."""

import pytest

from mtl.markdown import cell, code, code_block, literal


@pytest.mark.parametrize("text", ["news", "card_arrival", "yes/no (maybe)", "é 字 😀", "a|b", "a [b] c", "C++", ""])
def test_plain_texts_stay_plain(text: str) -> None:
    assert literal(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>bold</b>", "`<b>bold</b>`"),
        ("*x*", "`*x*`"),
        ("_x_", "`_x_`"),
        ("[a](javascript:b)", "`[a](javascript:b)`"),
        ("&lt;", "`&lt;`"),
        ("$x$", "`$x$`"),
        ("a `b` ``c``", "``` a `b` ``c`` ```"),
        ("```", "```` ``` ````"),
        ("one\n\n# two", "one # two"),
        (3.5, "3.5"),
    ],
)
def test_what_would_be_taken_for_something_else_is_code(text: object, shown: str) -> None:
    assert literal(text) == shown


@pytest.mark.parametrize(
    "text", ["<b>", "*x* _y_ [z](u)", "a `b` ``c``", "```", "&amp; $x$ \\(y\\)", "<!-- open", "card_arrival"]
)
def test_a_reader_of_markdown_finds_the_text(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    _, inline, _ = markdown_it.MarkdownIt("commonmark").parse(literal(text))
    assert [(token.type in ("text", "code_inline"), token.content) for token in inline.children] == [(True, text)]


def test_names_are_code_whatever_they_hold() -> None:
    assert code("toy") == "`toy`"
    assert code("a`b\nc") == "``a`b c``"


def test_cell_is_one_line_without_bars() -> None:
    assert cell("a | b\nc") == "a \\| b c"


def test_block_of_code_ends_where_the_code_does() -> None:
    assert code_block("a\nb", "bash") == "```bash\na\nb\n```"
    assert code_block("a\n```\n<b>") == "````\na\n```\n<b>\n````"

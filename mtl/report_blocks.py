"""What a page is made of: sections of texts, tables, pictures, facts, and a map; a template knows how each looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

_UNDEFINED = "n/a"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: What it shows.
        value: The number that it is sorted by, if it is one.
        share: How long a bar it has, from 0 to 1, if it has one.
        is_main: Whether it stands out.
        is_prose: Whether it is a long text, which needs room and may be in any script.
    """

    text: str
    value: float | None = None
    share: float | None = None
    is_main: bool = False
    is_prose: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Args:
        caption: What it shows.
        heads: Head of each column.
        rows: Its rows; the first cell of each names it.
        numbers: Places of the columns of numbers, which are set flush right and sorted as numbers.
        is_sortable: Whether a reader may sort it by a column.
        filters: Place of the column by whose values a reader may choose rows, beside a search; None for neither.
        is_folded: Whether it is closed at first.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()
    is_sortable: bool = False
    filters: int | None = None
    is_folded: bool = False
    kind: ClassVar[str] = "table"

    def values_to_filter_by(self) -> list[str]:
        """Returns the values of the column by which rows are chosen, each once."""
        if self.filters is None:
            return []
        return list(dict.fromkeys(row[self.filters].text for row in self.rows))


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: What it says.
        is_main: Whether it stands out.
    """

    text: str
    is_main: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: Its name, which no other one of the page has.
        svg: The figure as an SVG element.
        caption: What stands below it.
        is_wide: Whether its text would be too small on a narrow page, which scrolls it instead.
    """

    name: str
    svg: str
    caption: str = ""
    is_wide: bool = False


@dataclass(frozen=True)
class Pictures:
    """Figures that stand side by side where there is room."""

    pictures: Sequence[Picture]
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class PlaneMap:
    """Points that a reader may look at one by one, in the colours of one task after another.

    Args:
        data: `points`, `texts` and `tasks`, see `mtl.embedding_quality`, for the page's script.
        images: By task the map as a picture, for pages without scripts: its alternative text, and a link.
        names: Count of labels that the legend names.
        looks: Count of colours and shapes together.
    """

    data: Mapping[str, Any]
    images: Mapping[str, tuple[str, str]]
    names: int
    looks: tuple[int, int]
    kind: ClassVar[str] = "map"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, which the table of contents has as well.

    Args:
        name: What links to it name.
        text: What it says.
        aside: What stands beside it, less loud.
    """

    name: str
    text: str
    aside: str = ""
    kind: ClassVar[str] = "heading"


Block = Heading | Pictures | PlaneMap | Table | Text


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Args:
        name: What links to it name.
        title: Its heading.
        blocks: What it is made of.
    """

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def headings(self) -> list[Heading]:
        """The headings in it."""
        return [block for block in self.blocks if isinstance(block, Heading)]


@dataclass(frozen=True)
class Fact:
    """A figure that a page begins with.

    Args:
        name: What it is of.
        value: The figure.
        aside: What more is to be said of it.
    """

    name: str
    value: str
    aside: str = ""


def number(value: float | None, form: str = ".4f") -> Cell:
    """Returns a cell with a number; of an undefined one it is said that there is none."""
    return Cell(_UNDEFINED if value is None else f"{value:{form}}", value)


def count(value: float | None) -> Cell:
    """Returns a cell with a count."""
    return number(value, ",.0f")


def interval(low: float | None, high: float | None, form: str = ".4f") -> Cell:
    """Returns a cell with the two ends of an interval, if there is one."""
    return Cell(_UNDEFINED if low is None or high is None else f"{low:{form}} to {high:{form}}", low)


def duration(seconds: float) -> str:
    """Returns a time in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"

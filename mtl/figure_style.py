"""One look for all figures, PNG for files, and SVG that follows the colours of the page it stands in.

The colours are those that colour-blind readers can tell apart, of Okabe and Ito, "Color Universal Design", 2008.
"""

from __future__ import annotations

import base64
import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.etree import ElementTree

from mtl.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

INK, MUTED, GRID = "#1d2329", "#5b6570", "#d8dde2"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, OLIVE = (
    "#0072b2", "#d55e00", "#009e73", "#b4558c", "#c98500", "#3f9fd6", "#7a7a00"
)  # fmt: skip
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, OLIVE)
"""Colours of classes and lines, in their order; a page's style sheet has a lighter one of each for a dark page."""
MARKERS = ("o", "^", "s")
"""Shapes of points, the next one when the colours have been used up."""

_THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{colour: f"var(--colour-{place})" for place, colour in enumerate(PALETTE)},
}
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.family": ["DejaVu Sans"],  # matplotlib brings it, so that a figure is the same on every machine.
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # Text stays text: small, and in the fonts of the page.
    "text.color": INK,
    "text.parse_math": False,  # A label with two dollar signs is no formula.
    "xtick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelsize": 8.5,
}
_SVG, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
_DPI = 160


@contextmanager
def figure_style() -> Iterator[None]:
    """Sets matplotlib to this style, for as long as it lasts.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="report", what="A figure")
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The font has not every script; a browser draws the texts of an SVG in the fonts that it has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def in_figure_style(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Lets a function draw in [`figure_style`], and lays out what it has drawn."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with figure_style():
            figure = draw(*args, **kwargs)
            if (engine := figure.get_layout_engine()) is not None:
                engine.execute(figure)  # Once, and not for each file anew.
            figure.set_layout_engine("none")
            return figure

    return drawn


def new_plot(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns an empty figure and its axes; width and height are inches."""
    figure = new_figure(width, height)
    return figure, figure.subplots()


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure; width and height are inches."""
    from matplotlib.figure import Figure  # Without pyplot, which would choose a backend for the whole process.

    return Figure(figsize=(width, height), layout="constrained")


def one_line(text: object, most: int = 28) -> str:
    """Returns any text as a line of printable characters, cut where it is longer than `most`."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def png_bytes(figure: Figure) -> bytes:
    """Returns a figure as a PNG file on white."""
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def png_link(figure: Figure) -> str:
    """Returns a figure as a link that holds the PNG file itself."""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(figure)).decode()}"


def svg_element(figure: Figure, *, name: str, alt: str) -> str:
    """Returns a figure as an SVG element, in the colours `--ink`, `--muted`, `--grid`, `--colour-0`... of its page.

    Args:
        figure: The figure.
        name: What its ids begin with; another one for each figure of a page.
        alt: What it shows, for those who do not see it.
    """
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _drop(root, {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"})
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        _adapt(element, name, used)
    root.attrib.update({"role": "img", "aria-label": one_line(alt, 1000), "focusable": "false"})
    for key, width in (("width", figure.get_figwidth()), ("height", figure.get_figheight())):
        root.set(key, f"{width * 96:.0f}")  # CSS pixels.
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _drop(element: ElementTree.Element, tags: set[str]) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _references(element: ElementTree.Element) -> list[str]:
    inside = re.findall(r"url\(#([^)]+)\)", " ".join(element.attrib.values()))
    return [*inside, element.attrib.get(_LINK, "#")[1:]]


def _adapt(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Makes an element's ids its figure's own, gives it the page's colours, and shortens its numbers."""
    if (own := element.attrib.pop("id", None)) in used:
        element.set("id", f"{name}-{own}")
    if _LINK in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(_LINK)[1:]}")
    for key, value in element.attrib.items():
        if key in ("style", "fill", "stroke"):
            value = re.sub("#[0-9a-f]{6}", lambda found: _THEME.get(found[0], found[0]), value)
        elif key in ("d", "x", "y", "transform", "width", "height"):
            value = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
        element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))

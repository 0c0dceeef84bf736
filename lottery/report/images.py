"""Renders a figure as SVG or PNG, and prepares an SVG to stand inside a page."""

import io
import re
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from lottery.report.style import styled


@dataclass(frozen=True)
class Drawing:
    """A figure inside the page. It is rendered when the page asks for it: that takes far longer than all answers."""

    name: str
    caption: str
    figure: Figure

    @property
    def svg(self) -> Markup:
        inside = prefix_ids(to_svg(self.figure), self.name)
        return Markup(inside)  # matplotlib's own writer has escaped every label


def to_svg(figure: Figure) -> str:
    """Returns the figure as an <svg> element, without date: the same data gives the same text."""
    out = io.StringIO()
    with styled():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def to_png(figure: Figure) -> bytes:
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format="png", dpi=160, metadata={"Software": None})
    return out.getvalue()


def prefix_ids(text: str, prefix: str) -> str:
    """Returns the SVG with `prefix` before every id, so that two figures of one page share no id."""
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", text)

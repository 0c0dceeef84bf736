"""A figure as the bytes of an SVG, a PNG, or an SVG inside a page."""

import io
import re

from matplotlib.figure import Figure

from lottery.report.style import styled


def to_svg(figure: Figure) -> str:
    """The same bytes for the same data, to stand inside a page."""
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
    """An SVG whose ids are no other's in the same page."""
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", text)

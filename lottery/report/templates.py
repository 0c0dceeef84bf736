"""Finds the templates of pages in lottery/assets. Whatever they are given is escaped."""

from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from lottery import __version__

ASSETS = Path(__file__).parent.parent / "assets"


def template(name: str) -> jinja2.Template:
    """Returns the template `name`. It knows the filter `code` and lottery's `version`; a name that it is not given is an
    error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["code"] = code
    environment.globals["version"] = __version__
    return environment.get_template(name)


def code(words: str) -> Markup:
    """Returns HTML in which the text between backticks is code. Everything is escaped."""
    parts = words.split("`")
    pairs = len(parts) // 2 * 2 if len(parts) % 2 else 0
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 and i < pairs else escape(part) for i, part in enumerate(parts)
    )

"""HTML pages from the templates in experiments/templates. Every value is escaped text on one line; a missing one is an error."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gsclip_jax.runtime.names import one_line


def page(template: str, **values) -> str:
    """A template of experiments/templates, filled in."""
    return _ENVIRONMENT.get_template(template).render(values)


def picture(png: bytes) -> Markup:
    """A PNG as the `src` of an image, so that the page is one file."""
    return Markup("data:image/png;base64," + base64.b64encode(png).decode())


def _text(value) -> str:
    return value if isinstance(value, Markup) else one_line(str(value))


_ENVIRONMENT = Environment(
    loader=PackageLoader("experiments"), autoescape=True, undefined=StrictUndefined, finalize=_text,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip

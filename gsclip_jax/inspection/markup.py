"""HTML pages that are one file each, from templates. Every value is escaped text on one line; a missing one is an error."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import partial
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gsclip_jax.runtime.names import one_line


def environment(*packages: str) -> Environment:
    """Templates of the folders `templates` in these packages, and of this room's own."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in (*packages, "gsclip_jax.inspection")]),
        autoescape=True, undefined=StrictUndefined, finalize=_text, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals |= {"own_file": partial(own_file, (*packages, "gsclip_jax.inspection"))}
    return made


def own_file(packages: Sequence[str], name: str) -> Markup:
    """A script or style sheet as it is, to be put inside a page; of the first package whose templates have it."""
    places = [files(package).joinpath("templates", name) for package in packages]
    return Markup(next(place for place in places if place.is_file()).read_text(encoding="utf-8"))


def data(value) -> Markup:
    """`value` as JSON that can stand inside <script type="application/json">, whatever names are in it."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def picture(png: bytes) -> Markup:
    """A PNG as the `src` of an image, so that the page is one file."""
    return Markup("data:image/png;base64," + base64.b64encode(png).decode())


def _text(value) -> str:
    return value if isinstance(value, Markup) else one_line(str(value))

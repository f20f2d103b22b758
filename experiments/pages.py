"""HTML pages from the templates in experiments/templates, which may include those of gsclip_jax/inspection."""

from __future__ import annotations

from collections.abc import Iterator

from gsclip_jax.inspection import markup


def page(template: str, **values) -> str:
    """A template of experiments/templates, filled in."""
    return _ENVIRONMENT.get_template(template).render(values)


def pieces(template: str, **values) -> Iterator[str]:
    """The same in pieces, for what is made while it is written."""
    return _ENVIRONMENT.get_template(template).generate(**values)


_ENVIRONMENT = markup.environment("experiments")

"""HTML pages from the templates in experiments/templates, which may include those of gsclip_jax/inspection."""

from __future__ import annotations

from gsclip_jax.inspection import markup


def page(template: str, **values) -> str:
    """A template of experiments/templates, filled in."""
    return _ENVIRONMENT.get_template(template).render(values)


_ENVIRONMENT = markup.environment("experiments")

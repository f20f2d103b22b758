"""Hooks of the documentation site: rooms, links out of docs/, docstrings as they are."""

import ast
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("griffe")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "hooks"))

import docstrings  # noqa: E402
import pages  # noqa: E402


def test_every_module_with_a_docstring_is_on_the_page_of_its_room():
    found = pages.rooms()
    assert "gsclip_jax.models.clip" in found["gsclip_jax.models"] and found["data_pipelines"][0] == "data_pipelines"
    listed = {name for modules in found.values() for name in modules}
    for package in pages.PACKAGES:
        for path in (ROOT / package).rglob("[!_]*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert (name in listed) == (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is not None), name


@pytest.mark.parametrize("text, shown", [
    ("Tokens [B,V][T] of a < b.", r"Tokens \[B,V]\[T] of a &lt; b."),
    ("As `x[0][1]` has it, [E].", r"As `x[0][1]` has it, \[E]."),
    ("Code:\n\n    x[0][1] < 2\n\nAfter [0].", "Code:\n\n    x[0][1] < 2\n\nAfter \\[0]."),
    ("What.\n\nRaises:\n  DataError, or what\n  the file raises.\n", "What.\n\nRaises: DataError, or what the file raises.\n"),
    ("What.\n\nRaises:\n  ValueError: no such\n    key.\n", "What.\n\nRaises:\n  ValueError: no such\n    key.\n"),
])  # fmt: skip
def test_docstrings_are_shown_as_they_are(text, shown):
    assert docstrings.escaped(text) == shown


def test_links_out_of_docs_lead_to_pages_of_the_site():
    text = "[a](../benchmarks/tried.md) [b](method.md#scores) [c](https://example.org/x.md) [d](../nothing.md)"
    assert pages.targets(text, "results.md") == ["benchmarks/tried.md", "docs/method.md"]
    assert pages.site_uri("benchmarks/tried.md") == "repository/benchmarks/tried.md" and pages.site_uri("docs/a.md") == "a.md"
    assert pages.repository_path("repository/CHANGELOG.md") == "CHANGELOG.md" and pages.repository_path("a.md") == "docs/a.md"


def test_every_page_that_a_page_links_to_is_in_the_menu():
    """mkdocs --strict refuses a page outside the menu, in CI's first minutes and not before."""
    menu = {line.rsplit(maxsplit=1)[-1] for line in (pages.ROOT / "mkdocs.yml").read_text().splitlines() if line.endswith(".md")}
    own = [path.name for path in (pages.ROOT / "docs").glob("*.md")]
    assert len(own) > 5 and {*own, *(uri for uri in pages.reached(own) if uri.endswith(".md"))} == menu

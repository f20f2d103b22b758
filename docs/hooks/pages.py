"""Hook of mkdocs: the API reference, one page a room, and the files beside docs/ that a page links to.

Rooms are read from the folders, so that a new module is in the reference without an entry anywhere.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PACKAGES = ("data_pipelines", "gsclip_jax", "experiments")
LINK = re.compile(r"(\]\()([^)\s#:]+)")  # to a file, not to a place in the page or on the web


def rooms(root: Path = ROOT) -> dict[str, list[str]]:
    """Room (dotted) -> its modules with a docstring (dotted), the package's own first."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None:
                continue
            room = ".".join(path.relative_to(root).parent.parts)
            found.setdefault(room, []).append(room if path.stem == "__init__" else f"{room}.{path.stem}")
    return {room: sorted(modules) for room, modules in sorted(found.items())}


def site_uri(path: str) -> str:
    """Where a file of the repository lies on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def repository_path(uri: str) -> str:
    """The file of the repository behind a page."""
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def targets(markdown: str, uri: str) -> list[str]:
    """Files of the repository that a page links to."""
    folder = posixpath.dirname(repository_path(uri))
    named = (posixpath.normpath(posixpath.join(folder, target)) for _, target in LINK.findall(markdown))
    return [path for path in named if (ROOT / path).is_file()]


def reached(uris: Iterable[str]) -> list[str]:
    """Where the files lie on the site that these pages link to, and pages among them in turn; not the given ones."""
    known, found = set(uris), []
    waiting = list(known)
    while waiting:
        uri = waiting.pop()
        for path in targets((ROOT / repository_path(uri)).read_text(encoding="utf-8"), uri):
            if (linked := site_uri(path)) not in known:
                known.add(linked)
                found.append(linked)
                waiting += [linked] if linked.endswith(".md") else []
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav.append({"API reference": [{room: f"api/{room}.md"} for room in rooms()]})
    config.watch += [str(ROOT / package) for package in PACKAGES]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    known = {file.src_uri for file in files}
    for uri in reached(file.src_uri for file in files.documentation_pages() if file.abs_src_path):
        if uri not in known:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / repository_path(uri))))
    for room, modules in rooms().items():
        own = "\n    options:\n      show_root_heading: false"  # the page's title is its heading
        blocks = [f"# {room}", *(f"::: {name}" + (own if name == room else "") for name in modules)]
        files.append(File.generated(config, f"api/{room}.md", content="\n\n".join(blocks) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    if uri.startswith("api/"):
        return markdown

    def on_site(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(uri)), match[2]))
        if not (ROOT / path).is_file():
            return match[0]  # mkdocs says what is wrong with it
        return match[1] + posixpath.relpath(site_uri(path), posixpath.dirname(uri) or ".")

    return LINK.sub(on_site, markdown)

"""Documents say what is there: commands, options, keys, links, files, fields."""

import contextlib
import functools
import importlib
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from data_pipelines.batch import FIELDS
from experiments.command_line import asked_estimate, find_config, load_config, parse, set_key, usage

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_pipelines", "gsclip_jax", "experiments")
DOCUMENTS = sorted(
    path.relative_to(ROOT) for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", *(f"{name}/**/*.md" for name in PACKAGES))
    for path in ROOT.glob(pattern)
)  # fmt: skip
FENCE = re.compile(r"^```.*?$(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """Command lines in code blocks and in backticks, as words; placeholders (`...`) and comments left out."""
    blocks = [re.sub(r"\\\n\s*", " ", block) for block in FENCE.findall(text)]
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`((?:python|make|pip) [^`]+)`", FENCE.sub("", text))
    found = [own for line in lines for own in ours(shlex.split(line, comments=True))]
    return [[word for word in words if word != "..."] for words in found]


def ours(words: list[str]) -> list[list[str]]:
    """The commands in a line: itself, what a launcher starts (`srun ... python ...`), what it is given in quotes."""
    if words and words[0] in ("python", "make", "pip"):
        return [words]
    if words and words[0] == "srun":
        return [words[words.index("python") :]]
    quoted = [part for word in words for part in word.removeprefix("--command=").split(" && ") if " " in part]
    return [own for part in quoted for own in ours(shlex.split(part))]


COMMANDS = sorted({(str(path), shlex.join(words)) for path in DOCUMENTS for words in commands(text_of(path))})


def test_there_are_commands_in_the_documents():
    assert len(COMMANDS) > 30 and any("experiments.predict" in line for path, line in COMMANDS if path == "README.md")
    launched = [line for path, line in COMMANDS if path == "docs/scaling.md" and "/real3d --config.cache=/" in line]
    assert len(launched) == 3  # by srun, gcloud and xpk


@functools.cache
def help_of(module: str) -> str:
    package = (ROOT / module.replace(".", "/")).is_dir()
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    with contextlib.redirect_stdout(printed := io.StringIO()), contextlib.suppress(SystemExit):
        main(["--help"])
    return printed.getvalue()


@pytest.mark.parametrize("document, line", COMMANDS)
def test_a_command_of_a_document_exists(document, line):
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "pip":
        assert all((ROOT / word).is_file() for word in words if word.endswith(".txt"))
    elif words[1] != "-m":
        assert (ROOT / words[1]).is_file()
        assert all(word.partition("=")[0] in text_of(words[1]) for word in words[2:] if word.startswith("--"))
    else:
        check_module(words[2], words[3 : words.index("--") if "--" in words else None])


def check_module(module: str, arguments: list[str]) -> None:
    if module == "experiments.run":
        if "--help" in arguments:
            assert usage(arguments)
        elif arguments:
            parse([re.sub(r"\b(s3|gs)://", "", word) for word in asked_estimate(arguments)[1]])  # no store is asked
        return
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    plain = [option for option in options if not option.startswith("--config.")]
    text = help_of(module)
    assert text and not [option for option in plain if not re.search(rf"{re.escape(option)}\b", text)]
    if "--config" in plain:
        name = arguments[arguments.index("--config") + 1]
        find_config(name.partition(":")[0])
        config = load_config(f"stage2.py:{name.partition(':')[2]}".rstrip(":"))
        for word in arguments:
            if word.startswith("--config."):
                set_key(config, *word.removeprefix("--config.").split("=", 1))


def test_a_wrong_command_is_noticed():
    for line in ("make nothing", "python benchmarks/nothing.py", "python -m experiments.predict --outt x",
                 "python -m experiments.sweep --config sweeps/modules.py --config.model.top_kk=3"):  # fmt: skip
        with pytest.raises((AssertionError, ValueError)):
            test_a_command_of_a_document_exists("", line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files(document):
    text = FENCE.sub("", text_of(document))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link and not link.startswith("#")]
    missing = [link for link in links if not (ROOT / document.parent / link.partition("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.parts[0] in ("README.md", "docs")], ids=str)
def test_files_named_in_documents_exist(document):
    """`package/...file.ext` in backticks, with nothing to fill in."""
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)}|benchmarks|tests)/[\w/.]+\.\w+)`", text_of(document))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_readme_is_short_and_begins_with_what_it_is():
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 120
    assert all(len(line) <= 150 for line in lines)


def section(text: str, heading: str) -> str:
    return re.split(r"^#", text.partition(f"{heading}")[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(table: str) -> list[str]:
    return [name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_of_the_architecture(package):
    names = first_cells(section(text_of("docs/architecture.md"), f"### {package}:"))
    assert names and not [name for name in names if not (ROOT / package / name).exists()]
    folders = {path.name for path in (ROOT / package).iterdir() if any(path.glob("**/[!_]*.py"))}
    assert {name.rstrip("/") for name in names} >= folders


def test_paths_of_the_architecture():
    text = text_of("docs/architecture.md")
    for heading in ("## The path of a training step", "## The path of a scored scan"):
        names = re.findall(r"^    (\S+\.py) ", section(text, heading), re.MULTILINE)
        assert len(names) > 4 and not [name for name in names if not (ROOT / name).is_file()]


def test_fields_of_the_architecture():
    rows = re.findall(r"^\| `(\w+)` \| `\[([^\]]*)\]` (\w+) \|", text_of("docs/architecture.md"), re.MULTILINE)
    assert rows == [(name, ",".join(map(str, axes)), dtype) for name, (axes, dtype, _) in FIELDS.items()]


def test_packages_are_typed():
    data = tomllib.loads(text_of("pyproject.toml"))["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file() and "py.typed" in data[package]


def test_citation():
    found = yaml.safe_load(text_of("CITATION.cff"))
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert found["cff-version"] == "1.2.0" and found["version"] == project["version"] and found["license"] == project["license"]
    assert found["title"] and found["message"] and found["authors"]
    (paper,) = found["references"]
    assert paper["url"].endswith("2602.19206") and "2602.19206" in text_of("README.md") and len(paper["authors"]) == 3

"""The import rules of docs/architecture.md: one way between packages and rooms, no circles, heavy libraries where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_pipelines", "gsclip_jax", "experiments")
# What gsclip_jax may see of data_pipelines: modules of the standard library, numpy and filelock alone.
NAMES = ("batch", "scan", "files", "storage", "objects", "leases", "command", "progress")
PLUMBING = {f"data_pipelines.{name}" for name in NAMES}
# Rooms of gsclip_jax and what each may see of the others.
ROOMS = {
    "runtime": set(),
    "method": set(),
    "parts": {"models"},
    "models": {"method", "runtime"},
    "methods": {"method", "parts", "models", "runtime"},
    "training": {"method", "runtime"},
    "evaluation": {"method", "runtime"},
    "pretraining": {"method", "models", "methods", "runtime"},
    "convert": {"models", "methods", "runtime"},
    "build": {"method", "parts", "models", "methods", "convert"},
    "parity": {"method", "models", "methods", "runtime", "training", "evaluation", "convert"},
}
LIBRARIES = {  # where they may be imported
    "tensorflow": ("data_pipelines.input", "data_pipelines.records"),
    "tensorflow_datasets": ("data_pipelines.input", "data_pipelines.records"),
    "open3d": ("data_pipelines.rendering.open3d_worker", "data_pipelines.datasets.folder", "data_pipelines.clouds.cleaning"),
    "apache_beam": ("data_pipelines.records.beam",),
    "torch": (),
}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str) -> list[tuple[str, bool]]:
    """(module, whether inside a function) of every import of a module."""
    tree, found = ast.parse(MODULES[name].read_text()), []
    inside = {id(x) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for x in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are absolute here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((full if full in MODULES else node.module, id(node) in inside))
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """A path through every circle that a depth-first walk meets."""
    state, path, found = {}, [], []

    def walk(node):
        state[node] = 1
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if state.get(other) == 1:
                found.append([*path[path.index(other) :], other])
            elif other not in state:
                walk(other)
        path.pop()
        state[node] = 2

    for node in sorted(graph):
        if node not in state:
            walk(node)
    return found


def test_the_walk_sees_circles():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circles({"a": {"b", "c"}, "b": {"c"}})


def test_no_file_circles_lazy_imports_included():
    graph = {name: {other for other, _ in imports(name) if other in MODULES and other != name} for name in MODULES}
    assert circles(graph) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circles_between_folders(package):
    """Between the rooms of a package; its own files (scan, batch, method, ...) belong to no room."""
    rooms: dict[str, set[str]] = {}
    for name in MODULES:
        for other, _ in imports(name):
            one, two = name.split("."), other.split(".")
            if other in MODULES and one[0] == two[0] == package and len(one) > 2 and len(two) > 2 and one[1] != two[1]:
                rooms.setdefault(one[1], set()).add(two[1])
    assert circles(rooms) == []


def test_packages_import_one_way():
    for name in MODULES:
        package, seen = name.split(".")[0], {other for other, _ in imports(name) if other in MODULES}
        if package == "data_pipelines":
            assert {other for other in seen if not other.startswith("data_pipelines")} == set(), name
        elif package == "gsclip_jax":
            assert {other for other in seen if other.startswith("experiments")} == set(), name
            # parity checks two numpy functions of the pipeline whose arrays are recorded.
            if name != "gsclip_jax.parity.measures" and not name.startswith(("gsclip_jax.inspection", "gsclip_jax.service")):
                assert {other for other in seen if other.startswith("data_pipelines")} <= PLUMBING, name


def test_rooms_import_one_way():
    for name in MODULES:
        if name.startswith("gsclip_jax.") and (room := name.split(".")[1]) in ROOMS:
            for other, _ in imports(name):
                if other.startswith("gsclip_jax.") and (seen := other.split(".")[1]) != room:
                    assert seen in ROOMS[room], f"{name} imports {other}"
    assert {name.split(".")[1] for name in MODULES if name.startswith("gsclip_jax.")} <= {*ROOMS, "inspection", "service"}


def test_heavy_libraries_are_imported_where_they_belong():
    for name in MODULES:
        for other, _ in imports(name):
            library = other.split(".")[0]
            if library in LIBRARIES:
                allowed = LIBRARIES[library]
                assert any(name == place or name.startswith(place + ".") for place in allowed), f"{name} imports {other}"


def test_models_import_without_tensorflow_and_open3d():
    """Everything of gsclip_jax, in a process that has neither."""
    names = [name for name in MODULES if name.startswith("gsclip_jax") and not name.endswith("__main__")]
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "open3d", "torch"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import importlib
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_surface_stream_is_named_in_its_room_alone():
    """Nothing outside methods/surface and the configuration knows the stream; what loads and makes its network does."""
    allowed = ("gsclip_jax.methods", "gsclip_jax.pretraining", "gsclip_jax.convert", "experiments.pretrain", "gsclip_jax.build",
               "experiments.checks", "experiments.configs")  # fmt: skip
    for name in MODULES:
        if any(other.startswith("gsclip_jax.methods.surface") for other, _ in imports(name)):
            assert name.startswith(allowed), name

"""What every key of the configuration is for: the comments beside the keys, where they are written."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import tokenize

from experiments.configs import common, pretrain, protocol
from gsclip_jax.methods import METHODS


def key_comments(method: str) -> dict[str, str]:
    """{"section.key": comment} of the shared keys and of a method's own."""
    found: dict[str, str] = {}
    for function in (common.embedded, pretrain.get_config, protocol.get_config):
        source = inspect.getsource(function)
        notes = _notes(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ConfigDict" and node.args:
                _of_dict(node.args[0], "", notes, found)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute) and node.lineno in notes:
                found.setdefault(ast.unparse(node.targets[0]).removeprefix("config."), notes[node.lineno])
    _of_dataclass(METHODS[method].config, "", found)
    return found


def _notes(source: str) -> dict[int, str]:
    """Line -> its comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT and "fmt:" not in t.string}


def _of_dict(node: ast.expr, before: str, notes: dict[int, str], found: dict[str, str]) -> None:
    if not isinstance(node, ast.Dict):
        return
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant):
            if isinstance(value, ast.Dict) and value.keys:
                _of_dict(value, f"{before}{key.value}.", notes, found)
            elif value.end_lineno in notes and sum(k.lineno == key.lineno for k in node.keys if k is not None) == 1:
                found[f"{before}{key.value}"] = notes[value.end_lineno]


def _of_dataclass(kind: type, before: str, found: dict[str, str]) -> None:
    notes = _notes(inspect.getsource(kind))
    lines = {
        node.target.id: node.end_lineno for node in ast.walk(ast.parse(inspect.cleandoc(inspect.getsource(kind))))
        if isinstance(node, ast.AnnAssign)
    }  # fmt: skip
    for field in dataclasses.fields(kind):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if dataclasses.is_dataclass(default):
            _of_dataclass(type(default), f"{before}{field.name}.", found)
        elif lines[field.name] in notes:
            found[f"{before}{field.name}"] = notes[lines[field.name]]

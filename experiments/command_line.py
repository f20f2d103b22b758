"""The command line of experiments.run: from its words to a configuration and a work directory."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from data_pipelines import storage
from data_pipelines.scan import did_you_mean
from experiments.configs.common import PRESETS, set_method
from experiments.identity import held
from experiments.key_comments import key_comments
from gsclip_jax.parts import ConfigError

CONFIGS = Path(__file__).parent / "configs"
USAGE = "usage: python -m experiments.run --config CONFIG.py[:preset] [--workdir DIR] [--config.KEY=VALUE ...] [--estimate]"
ESTIMATES = ("json", "quick")  # --estimate=...: for programs; without compiling
ABOUT = """Runs what is missing in the work directory and reuses what is there. A bare configuration name is looked up in
experiments/configs; without a preset it is the embedded default (minutes on a laptop, no downloads).
With --estimate it says what all of that would cost and does none of it (--estimate=json: for programs; --estimate=quick: without
compiling, so without the memory plan)."""


def usage(arguments: list[str] = ()) -> str:
    """What --help says: the command, and every key with its value in the configuration that `arguments` name."""
    _, option, rest = " ".join(arguments).partition("--config")
    name = rest.lstrip("= ").partition(" ")[0] if option and rest[:1] in ("=", " ") else ""
    config = load_config(name or "stage2.py")
    notes = key_comments(config.method)
    keys = [(f"  {key}={str(value).strip()}", notes.get(key)) for key, value in _keys(config)]
    return "\n".join([
        USAGE, "", ABOUT, "",
        f"configurations: {', '.join(_configurations())}",
        f"presets: {', '.join(filter(None, PRESETS))}",
        f"keys of {name or 'stage2.py'} (--config.KEY=VALUE):",
        *(f"{text:<44}  {note}" if note else text for text, note in keys),
    ])  # fmt: skip


def _keys(config, before: str = "") -> list[tuple[str, object]]:
    found = []
    for key, value in config.items():
        found += _keys(value, f"{before}{key}.") if hasattr(value, "keys") and len(value) else [(before + key, value)]
    return found


def asked_estimate(arguments: list[str]) -> tuple[tuple[str, ...] | None, list[str]]:
    """(which of ESTIMATES are asked for, None: no estimate; the other words). Raises ConfigError: one that is not known."""
    asked = [word.partition("=")[2] for word in arguments if word.partition("=")[0] == "--estimate"]
    how = tuple(word for words in asked for word in words.split(",") if word)
    for word in how:
        if word not in ESTIMATES:
            raise ConfigError(f"--estimate={word}{did_you_mean(word, ESTIMATES)} Known: {', '.join(ESTIMATES)}, or nothing")
    return (how if asked else None), [word for word in arguments if word.partition("=")[0] != "--estimate"]


def parse(arguments: list[str]):
    """(configuration, work directory) of a command line.

    Raises:
      ConfigError: unknown option, configuration, preset or key (with the nearest known one), or a value of another type.
    """
    name, workdir, changes = None, None, []
    rest = list(arguments)
    if not rest:
        raise ConfigError(f"{USAGE}; configurations: {', '.join(_configurations())}")
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option.startswith("--config."):
            if not equals:
                if not rest:
                    raise ConfigError(f"{option} needs a value: {option}=VALUE")
                value = rest.pop(0)
            changes.append((option.removeprefix("--config."), value))
        elif option in ("--config", "--workdir"):
            if not equals:
                if not rest:
                    raise ConfigError(f"{option} needs a value. {USAGE}")
                value = rest.pop(0)
            name, workdir = (value, workdir) if option == "--config" else (name, value)
        else:
            raise ConfigError(f"unknown option {option!r}{did_you_mean(option, ('--config', '--workdir', '--estimate'))} {USAGE}")
    if name is None:
        raise ConfigError(f"no --config given. {USAGE}")
    config = load_config(name)
    set_keys(config, changes)
    folder = storage.opened(workdir) if workdir else default_workdir(config)
    storage.pull(folder, ("config.json", "model/config.json").__contains__)  # what is trained there
    if config.task == "eval":
        config = trained_config(name, config, folder)
        set_keys(config, changes)
    return config, folder


def trained_config(name: str, config, workdir: Path):
    """What the model in `workdir` was trained with, for its evaluation: nothing of it has to be said again. `config`, where
    nothing is there. Where it runs is the new command's, but for the cache.

    Args:
      name: of the configuration, `file.py[:preset]`.

    Raises:
      ConfigError: trained with another preset than the one named.
    """

    there = held(workdir)
    if there is None or there.get("task") == "pretrain":
        return config
    preset = there.get("preset", "")
    if ":" in name and config.preset != preset:
        raise ConfigError(f"{workdir} was trained with preset {preset!r}, not {config.preset!r}; --config eval.py takes what was")
    file = name.partition(":")[0]
    found = load_config(f"{file}:{preset}" if preset else file)
    set_method(found, there.get("method", found.method))  # with its keys, and none of another method's
    here = {key: found[key] for key in ("task", "workers", "mesh")}
    with found.unlocked(), found.ignore_type():
        found.update(_tuples({key: value for key, value in there.items() if key not in (*here, "auxiliary")}))
    return found


def _tuples(value):
    """Lists as configurations have them."""
    if isinstance(value, dict):
        return {key: _tuples(below) for key, below in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _configurations() -> list[str]:
    files = (p for p in CONFIGS.rglob("*.py") if p.stem not in ("common", "__init__"))
    return sorted(p.relative_to(CONFIGS).as_posix() for p in files)


def find_config(path: str) -> Path:
    """The configuration file of that name: as given, or in experiments/configs, with or without `.py`.

    Raises:
      ConfigError: no such file.
    """
    file = Path(path) if Path(path).is_file() else CONFIGS / path
    if not file.suffix:
        file = file.with_suffix(".py")
    if not file.is_file():
        known = _configurations()
        raise ConfigError(f"no configuration {path!r}{did_you_mean(path, known)} Known: {', '.join(known)}")
    return file


def load_config(name: str):
    """The configuration of `file.py[:preset]`; bare names resolve to experiments/configs.

    Raises:
      ConfigError: no such file or preset.
    """

    path, _, preset = name.partition(":")
    file = find_config(path)
    spec = importlib.util.spec_from_file_location(f"gsclip_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(preset or None)
    except ValueError as error:
        raise ConfigError(f"{file.name}: {error}") from None


# Tables that take any name: whoever reads them refuses what is none.
OPEN = ("data.point_sizes", "data.reader", "target.data", "model.switches")


def set_keys(config, changes: list[tuple[str, str]]) -> None:
    """`set_key` for all of them, a method before its own keys."""
    for key, value in sorted(changes, key=lambda change: change[0] != "method"):
        set_key(config, key, value)


def set_key(config, key: str, value: str) -> None:
    """config.a.b = value, read as the type that is there.

    Raises:
      ConfigError: no such key, or a value that does not fit.
    """
    if key == "method":
        return set_method(config, value)
    *path, last = key.split(".")
    place = config
    for i, part in enumerate([*path, last]):
        open_ended = i > 0 and (not len(place) or ".".join([*path, last][:i]) in OPEN)
        if part not in place and not open_ended:
            known = ".".join([*path, last][:i])
            hint = did_you_mean(part, place.keys())
            raise ConfigError(f"no key config.{key}{hint} Under config{'.' + known if known else ''}: {', '.join(place.keys())}")
        if i < len(path):
            place = place[part]
            if not hasattr(place, "keys"):
                raise ConfigError(f"config.{'.'.join(path[: i + 1])} is a value, it has no key {last!r}")
    try:
        new = _read(value, place[last] if last in place else None)
    except ValueError:
        kind = type(place[last]).__name__
        raise ConfigError(f"config.{key}={value!r} is no {kind}; it was {place[last]!r}") from None
    with place.ignore_type():
        place[last] = new


def _read(text: str, old):

    if isinstance(old, bool):
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise ValueError
    if isinstance(old, int):
        return int(text)
    if isinstance(old, float):
        return float(text)
    if isinstance(old, tuple):
        items = [item.strip().strip("'\"") for item in text.strip("()[] ").split(",") if item.strip()]
        kind = type(old[0]) if old else str
        return tuple(kind(item) for item in items)
    if isinstance(old, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def default_workdir(config) -> Path:
    """runs/NAME-CATEGORY-VARIANT-sSEED, and -on-TARGET where another data set is evaluated, so that different experiments do not
    meet. An evaluation finds the model that the same command trained, else the one trained without a target."""
    if config.task == "pretrain":
        return Path("runs/pretrain")
    name = "protocol-" if config.task == "protocol" else ""
    name += f"{config.preset or 'demo'}-"
    name += f"{config.data.train_category}-" if config.task != "protocol" else ""
    plain = Path("runs") / f"{name}{config.variant}-s{config.seed}"
    if not config.target.name:
        return plain
    across = plain.with_name(f"{plain.name}-on-{config.target.name}")
    return plain if config.task == "eval" and not (across / "model").is_dir() else across

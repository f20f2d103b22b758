"""python -m experiments.run --config stage2.py[:preset] [--workdir DIR] [--config.section.key=value ...]

Runs what is missing in the work directory and reuses what is there. A bare configuration name is looked up in
experiments/configs; without a preset it is the embedded default (minutes on a laptop, no downloads).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from data_pipelines.command import command, guarded

CONFIGS = Path(__file__).parent / "configs"
USAGE = "usage: python -m experiments.run --config CONFIG.py[:preset] [--workdir DIR] [--config.section.key=value ...]"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status; every expected failure is one line on standard error."""
    arguments_given = arguments is not None

    def whole() -> None:
        given = arguments if arguments_given else sys.argv[1:]
        if {"-h", "--help"} & set(given):
            return print(usage(given))
        config, workdir = parse(given)
        if not arguments_given:  # a program of its own: JAX has not started yet
            import jax

            jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
        run(config, workdir)

    return guarded(whole)


def usage(arguments: list[str] = ()) -> str:
    """What --help says: the command, and every key with its value in the configuration that `arguments` name."""
    from experiments.configs.common import PRESETS

    _, option, rest = " ".join(arguments).partition("--config")
    name = rest.lstrip("= ").partition(" ")[0] if option and rest[:1] in ("=", " ") else ""
    config = load_config(name or "stage2.py")
    return "\n".join([
        USAGE, "", __doc__.partition("\n\n")[2].strip(), "",
        f"configurations: {', '.join(_configurations())}",
        f"presets: {', '.join(filter(None, PRESETS))}",
        f"keys of {name or 'stage2.py'} (--config.KEY=VALUE):", *(f"  {key}={value}" for key, value in _keys(config)),
    ])  # fmt: skip


def _keys(config, before: str = "") -> list[tuple[str, object]]:
    found = []
    for key, value in config.items():
        found += _keys(value, f"{before}{key}.") if hasattr(value, "keys") and len(value) else [(before + key, value)]
    return found


def parse(arguments: list[str]):
    """(configuration, work directory) of a command line.

    Raises:
      ConfigError: unknown option, configuration, preset or key (with the nearest known one), or a value of another type.
    """
    from experiments.build import ConfigError
    from experiments.configs.common import suggest

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
            raise ConfigError(f"unknown option {option!r}{suggest(option, ('--config', '--workdir'))} {USAGE}")
    if name is None:
        raise ConfigError(f"no --config given. {USAGE}")
    config = load_config(name)
    for key, value in changes:
        set_key(config, key, value)
    return config, Path(workdir) if workdir else default_workdir(config)


def _configurations() -> list[str]:
    files = (p for p in CONFIGS.rglob("*.py") if p.stem not in ("common", "__init__"))
    return sorted(p.relative_to(CONFIGS).as_posix() for p in files)


def find_config(path: str) -> Path:
    """The configuration file of that name: as given, or in experiments/configs, with or without `.py`.

    Raises:
      ConfigError: no such file.
    """
    from experiments.build import ConfigError
    from experiments.configs.common import suggest

    file = Path(path) if Path(path).is_file() else CONFIGS / path
    if not file.suffix:
        file = file.with_suffix(".py")
    if not file.is_file():
        known = _configurations()
        raise ConfigError(f"no configuration {path!r}{suggest(path, known)} Known: {', '.join(known)}")
    return file


def load_config(name: str):
    """The configuration of `file.py[:preset]`; bare names resolve to experiments/configs.

    Raises:
      ConfigError: no such file or preset.
    """
    from experiments.build import ConfigError

    path, _, preset = name.partition(":")
    file = find_config(path)
    spec = importlib.util.spec_from_file_location(f"gsclip_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(preset or None)
    except ValueError as error:
        raise ConfigError(f"{file.name}: {error}") from None


def set_key(config, key: str, value: str) -> None:
    """config.a.b = value, read as the type that is there.

    Raises:
      ConfigError: no such key, or a value that does not fit.
    """
    from experiments.build import ConfigError
    from experiments.configs.common import suggest

    *path, last = key.split(".")
    place = config
    for i, part in enumerate([*path, last]):
        open_ended = not len(place) and i > 0
        if part not in place and not open_ended:
            known = ".".join([*path, last][:i])
            hint = suggest(part, place.keys())
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
    import ast

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


TASKS = ("stage1", "stage2", "eval", "protocol", "pretrain")


def default_workdir(config) -> Path:
    """runs/NAME-CATEGORY-VARIANT-sSEED, so that different experiments do not meet."""
    if config.task == "pretrain":
        return Path("runs/pretrain")
    if config.task == "protocol":
        return Path("runs") / f"protocol-{config.preset or 'demo'}-{config.variant}-s{config.seed}"
    return Path("runs") / f"{config.preset or 'demo'}-{config.data.train_category}-{config.variant}-s{config.seed}"


def run(config, workdir: Path) -> None:
    """The whole of a configuration."""
    import jax

    # The same programs are compiled once a machine, not once a run: comparisons and reruns find them here.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the user's own stays
        jax.config.update("jax_compilation_cache_dir", str(Path(config.cache).absolute() / "xla"))
    if config.task == "pretrain":
        from experiments import pretrain
        from experiments.pipeline import claim_workdir

        claim_workdir(config, workdir)
        return pretrain.run(config, workdir)
    from experiments.build import ConfigError
    from experiments.configs.common import suggest
    from experiments.pipeline import Run, claim_workdir, say, table
    from gsclip_jax.writer import named

    if config.task == "protocol":
        from experiments import protocol

        claim_workdir(config, workdir)
        protocol.run(config, workdir, lambda one, folder: _results(Run(one, folder)))
        return None
    if config.task not in TASKS:
        raise ConfigError(f"config.task {config.task!r}{suggest(config.task, TASKS)}")
    this = Run(config, workdir)
    if config.task == "stage1":
        this.train("stage1")
        say(f"stage 1 is trained: {workdir / 'stage1'}")
        return None
    if config.task == "eval" and not (workdir / "stage2").is_dir():
        raise ConfigError(f"{workdir} holds no trained stage 2; run stage2.py with this --workdir first")
    results = _results(this)
    compared, others = {}, comparisons(config)
    for number, (name, other) in enumerate(others.items(), 1):
        say(f"\ncompared method {number} of {len(others)}: {name}")
        with named(name):
            compared[name] = _results(Run(other, workdir / "compare" / name))
    if jax.process_index() == 0:
        from experiments.report import write_report

        say("\n" + table(results, compared))
        seconds = results["seconds"]
        say("\nseconds: " + ", ".join(f"{phase} {value:.0f}" for phase, value in seconds.items()))
        write_report(this, results, compared)
        say(f"results: {workdir / 'results.json'}, pictures: {workdir / 'report.html'}")
    return None


def _results(this) -> dict:
    """From the work directory where they are complete, else by running what is missing."""
    import json

    if this.results_file.exists():
        return json.loads(this.results_file.read_text())
    return this.evaluate()


def comparisons(config) -> dict:
    """Configurations of the methods that config.compare names, on the same data and seed.

    Raises:
      ConfigError: unknown name.
    """
    from experiments.build import ConfigError
    from experiments.configs.common import suggest

    changes = {
        "random_clip": {"clip": {"random": True}},  # same training, CLIP weights drawn at random
        "views_alone": {"model": {"surface_share": 0.0}},  # the paper's two streams, without the surface's
        "pointad": {"method": "pointad"},  # learned prompts, render stream alone
        "plain_clip": {"method": "plain_clip"},  # sentences and renderings, no learning
        "surface_variation": {"method": "surface_variation"},  # geometry alone, no learning
        "broken_symmetry": {"method": "broken_symmetry"},
    }
    found = {}
    for name in config.compare:
        if name not in changes:
            raise ConfigError(f"config.compare: no {name!r}{suggest(name, changes)} Known: {', '.join(changes)}")
        other = config.copy_and_resolve_references()
        other.compare = ()
        other.update(changes[name])
        found[name] = other
    return found


if __name__ == "__main__":
    sys.exit(command(main))

"""python -m experiments.run --config stage2.py[:preset] [--workdir DIR] [--config.section.key=value ...]

Runs what is missing in the work directory and reuses what is there. A bare configuration name is looked up in
experiments/configs; without a preset it is the embedded default (minutes on a laptop, no downloads).
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from pathlib import Path

import jax

from data_pipelines.command import command, guarded
from data_pipelines.progress import named
from data_pipelines.scan import did_you_mean
from experiments import checks, evaluations
from experiments.configs.common import PRESETS, set_method, with_method
from experiments.export import is_trained
from experiments.identity import claim_workdir, held
from gsclip_jax.methods import METHODS
from gsclip_jax.parts import ConfigError

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
            jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
        run(config, workdir)

    return guarded(whole)


def usage(arguments: list[str] = ()) -> str:
    """What --help says: the command, and every key with its value in the configuration that `arguments` name."""
    from experiments.key_comments import key_comments

    _, option, rest = " ".join(arguments).partition("--config")
    name = rest.lstrip("= ").partition(" ")[0] if option and rest[:1] in ("=", " ") else ""
    config = load_config(name or "stage2.py")
    notes = key_comments(config.method)
    keys = [(f"  {key}={str(value).strip()}", notes.get(key)) for key, value in _keys(config)]
    return "\n".join([
        USAGE, "", __doc__.partition("\n\n")[2].strip(), "",
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
            raise ConfigError(f"unknown option {option!r}{did_you_mean(option, ('--config', '--workdir'))} {USAGE}")
    if name is None:
        raise ConfigError(f"no --config given. {USAGE}")
    config = load_config(name)
    set_keys(config, changes)
    folder = Path(workdir) if workdir else default_workdir(config)
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


def run(config, workdir: Path) -> None:
    """The whole of a configuration: what is missing of it, after everything that can be refused was."""
    # The same programs are compiled once a machine, not once a run: comparisons and reruns find them here.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the user's own stays
        jax.config.update("jax_compilation_cache_dir", str(Path(config.cache).absolute() / "xla"))

    checks.check_values(config)
    if config.task == "pretrain":
        from experiments import pretrain  # like the pipeline, below

        claim_workdir(config, workdir)
        return pretrain.run(config, workdir)
    from experiments.pipeline import Run, say, table  # here: TensorFlow takes seconds, and refusals need none of it

    if config.task == "protocol":
        from experiments import protocol  # like the pipeline

        check_all(config, workdir)
        claim_workdir(config, workdir)
        protocol.run(config, workdir, lambda one, folder: _results(Run(one, folder)))
        return None
    check_all(config, workdir)
    this = Run(config, workdir)
    if config.task == "stage1":
        this.train("stage1")
        say(f"stage 1 is trained: {workdir / 'stage1'}")
        return None
    results = _results(this)
    compared, others = {}, alongside(config, workdir)
    for number, (name, other) in enumerate(others.items(), 1):
        say(f"\ncompared method {number} of {len(others)}: {name}")
        with named(name):
            compared[name] = _results(Run(other, workdir / "compare" / name))
    if jax.process_index() == 0:
        from experiments.report import write_report  # like the pipeline

        say("\n" + table(results, compared))
        seconds = results["seconds"]
        say("\nseconds: " + ", ".join(f"{phase} {value:.0f}" for phase, value in seconds.items()))
        reported = this.reported()
        write_report(reported, results, compared)
        evaluations.show(reported.workdir / "results.json")
        say(f"results: {workdir / 'results.json'}, pictures: {workdir / 'report.html'}")
        if reported.workdir != workdir:
            say(f"they are kept in {reported.workdir}, with the scores")
    return None


def _results(this) -> dict:
    """From the work directory where they are complete, else by running what is missing."""
    found = this.results()
    return this.evaluate() if found is None else found


def check_all(config, workdir: Path, seen=None, devices: bool = True) -> None:
    """Refuses what cannot run before any of it does: every run of a protocol, every method put beside a run.

    Args and errors: as `checks.check_before`.
    """
    from experiments import identity, protocol  # like the pipeline

    seen = seen or checks.Seen()
    if config.task == "protocol":
        identity.check_claim(config, workdir)
        for one, folder in protocol.rows(config, workdir):
            check_all(one, folder, seen, devices)
        return
    runs = [(config, workdir), *((other, workdir / "compare" / name) for name, other in alongside(config, workdir).items())]
    for one, folder in runs:
        if one.task == "stage1" or evaluations.find(folder, one) is None:
            checks.check_before(one, folder, seen, devices)


def alongside(config, workdir: Path) -> dict:
    """The comparisons of a run. An evaluation trains nothing: it compares with what is trained, or learns nothing."""
    found = comparisons(config)
    if config.task == "stage1":
        return {}
    if config.task != "eval":
        return found
    return {n: c for n, c in found.items() if not METHODS[c.method].trains or is_trained(c, workdir / "compare" / n)}


def comparisons(config) -> dict:
    """Configurations of the methods that config.compare names, on the same data and seed.

    Raises:
      ConfigError: unknown name.
    """

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
            raise ConfigError(f"config.compare: no {name!r}{did_you_mean(name, changes)} Known: {', '.join(changes)}")
        change = dict(changes[name])
        other = with_method(config, change.pop("method", config.method))
        other.compare = ()
        other.update(change)
        found[name] = other
    return found


if __name__ == "__main__":
    sys.exit(command(main))

"""One run for each auxiliary category, and the means over them: the published way to report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.files import write_json
from experiments.identity import settings
from experiments.summary import say, table
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.distributed import is_first


def run(config: ConfigDict, workdir: Path, results_of: Callable[[ConfigDict, Path], dict]) -> dict:
    """Runs what is missing in workdir/CATEGORY, prints each table as it comes and the means; writes workdir/results.json.

    Args:
      results_of: the results of one configuration in one work directory, trained and evaluated where they are missing.

    Raises:
      ConfigError: no auxiliary category.
    """
    runs = {}
    for one, folder in rows(config, workdir):
        category = one.data.train_category
        say(f"\n{category}: training on it, evaluating on the others")
        runs[category] = results_of(one, folder)
        say(table(runs[category]))
    joined = join(runs) | {"evaluation": {"settings": settings(config)}}
    if is_first():
        write_json(workdir / "results.json", joined)
    say(f"\nmean over {len(runs)} auxiliary categories, by category evaluated")
    say(table(joined))
    say("\nby category trained on")
    say(table({"categories": {name: found["mean"] for name, found in runs.items()}, "mean": joined["mean"]}))
    say(f"results: {workdir / 'results.json'}")
    return joined


def rows(config: ConfigDict, workdir: Path) -> list[tuple[ConfigDict, Path]]:
    """The runs of the protocol and their work directories. Raises ConfigError: no auxiliary category, or one twice."""
    if not config.auxiliary:
        raise ConfigError("config.auxiliary is empty; name the categories to train on")
    if len(set(config.auxiliary)) < len(config.auxiliary):
        raise ConfigError(f"config.auxiliary {tuple(config.auxiliary)}: name each category once")
    found = []
    for category in config.auxiliary:
        one = config.copy_and_resolve_references()
        one.task, one.data.train_category = "stage2", category
        with one.unlocked():
            del one.auxiliary
        found.append((one, workdir / category))
    return found


def join(runs: dict[str, dict]) -> dict:
    """Results of the protocol from the results of its runs: a category's values are means over the runs that evaluate it, the
    mean is that of the runs' means."""
    first = next(iter(runs.values()))
    names = list(dict.fromkeys(name for found in runs.values() for name in found["categories"]))
    tables = {name: [found["categories"][name] for found in runs.values() if name in found["categories"]] for name in names}
    return {
        **{key: first[key] for key in ("dataset", "trained_on", "preset", "variant", "method", "seed", "versions")},
        "auxiliary": list(runs),
        "categories": {name: evaluate.mean(dict(enumerate(rows))) for name, rows in tables.items()},
        "runs": {name: found["mean"] for name, found in runs.items()},
        "mean": evaluate.mean({name: found["mean"] for name, found in runs.items()}),
    }

"""The scans that a configuration asks for, counted without reading them: those that are here, else as published."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.datasets import DATA_SETS, open_reader
from data_pipelines.datasets.data_set import Published
from data_pipelines.records.objects import Recipe, recipe_of
from data_pipelines.records.store import local_root
from data_pipelines.scan import DataError, Scan
from data_pipelines.solids import synthetic
from experiments.data import data_config, is_embedded, synthetic_parts, wanted
from experiments.rates import scan_of, stand_in


@dataclass(frozen=True)
class Scans:
    """Scans of which a run makes records.

    Fields:
      total, train: all of them; those of the auxiliary category among them.
      said: how they were counted.
      content: equal for the same records.
      one: gives one of them, its category, and the seconds that it took to be made, where it was.
      what: which one that is.
    """

    total: int
    train: int
    categories: int
    said: str
    content: Any
    recipe: Recipe
    one: Callable[[], tuple[Scan, str, float]]
    what: str


def scans_of(config: ConfigDict) -> Scans:
    """Raises DataError, ConfigError: the root is given and cannot be read, or nobody knows how many scans there are."""
    recipe = recipe_of(data_config(config))
    if is_embedded(config):
        return _embedded(config, recipe)
    if config.data.root:
        return _found(config, recipe)
    if (published := DATA_SETS[config.data.name].published) is None:
        raise DataError(f"how many scans {config.data.name!r} has is not known beforehand; set the root of the data")
    return _published(config, recipe, published)


def _embedded(config: ConfigDict, recipe: Recipe) -> Scans:
    counts = {name: (made.good + made.defective, made) for names, made, _ in synthetic_parts(config) for name in names}
    train = config.data.train_category
    category, (_, made) = next(reversed(counts.items()))

    def one() -> tuple[Scan, str, float]:
        began = time.process_time()
        # As the set's own writer: the first sound object.
        how = {"points": made.points, "difficulty": made.difficulty, "relief": made.relief, "grafts": made.grafts}
        xyz, mask, _ = synthetic.make_object(category, made.seed, 0, "good", **how)
        scan = Scan(xyz=xyz, mask=mask, valid=mask | True, colours=None)
        if recipe.rgb_render:
            scan.colours = (xyz * 0 + 128).astype("uint8")
        return scan, category, time.process_time() - began

    each = {name: count for name, (count, _) in counts.items()}
    return Scans(sum(each.values()), each.get(train, 0), len(each), "procedural solids, made by the run",
                 ("synthetic", *sorted(each.items())), recipe, one, f"a procedural {category}, made and rendered")  # fmt: skip


def _found(config: ConfigDict, recipe: Recipe) -> Scans:
    data, categories = wanted(config)
    reader = open_reader(data["name"], local_root(data["root"]), **data["reader"])
    samples = {name: reader.samples(name) for name in categories or reader.categories()}
    counts = {name: len(found) for name, found in samples.items()}
    if not sum(counts.values()):
        raise DataError(f"{data['root']}: no scans of {', '.join(counts)}")
    category = data["train_category"] if counts.get(data["train_category"]) else next(name for name in counts if counts[name])
    first = samples[category][0]
    train = counts.get(data["train_category"], 0)
    return Scans(sum(counts.values()), train, len(counts), f"found under {data['root']}",
                 (data["name"], str(data["root"]), *sorted(counts.items())), recipe,
                 lambda: (scan_of(reader, first, recipe), category, 0.0), first.path)  # fmt: skip


def _published(config: ConfigDict, recipe: Recipe, published: Published) -> Scans:
    _, named = wanted(config)
    train = published.count(config.data.train_category) if config.data.train_category else 0
    total = sum(map(published.count, named)) if named else published.scans
    categories = len(named) if named else published.categories
    what = f"a made-up scan of {'x'.join(map(str, published.grid)) if published.grid else f'{published.points:,}'} points"
    return Scans(total, train, categories, "by what is published of the set, which is not here: no root is given",
                 (config.data.name, "", total, categories), recipe,
                 lambda: (stand_in(published), config.data.train_category or "any", 0.0), what)  # fmt: skip

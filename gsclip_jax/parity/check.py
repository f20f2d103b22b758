"""Which module answers for which item, and the run over all of them."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import jax

from gsclip_jax.parity.compare import Row, judge
from gsclip_jax.parity.recording import Entry, Model, ParityError, Recording

MODULES = {"abc": "towers", "de": "texts", "fg": "points", "hij": "fusion", "klp": "measures", "m": "stage1", "n": "stage2",
           "o": "scoring", "qrstuvwxyz": "align3d"}  # fmt: skip
# Arrays whose recorded behaviour we part from on purpose; the modules above give the reason and check what we do instead.
BY_DESIGN = {("p", "filled"), ("p", "left"), ("j", "points_hidden")}


class Found(NamedTuple):
    """Our value of an entry; `by_design` is the reason where it is compared with another one than the recorded."""

    entry: Entry
    value: Any
    by_design: str = ""
    instead: Any = None  # what `value` must then be: compared within the recorded array's bounds


Answer = Callable[[Model, list[Entry]], Iterable[Found]]


def answer_of(item: str) -> Answer | None:
    for items, module in MODULES.items():
        if item in items:
            return import_module(f"gsclip_jax.parity.{module}").answers
    return None


def check(recording: Recording, items: Iterable[str], progress: Callable[[str], None] = lambda text: None) -> list[Row]:
    """A row for every recorded output of `items`, in the manifest's order, and for every array that nothing answers for."""
    entries = [e for e in recording.entries if not e.is_input and (e.item in items or e.item == "?")]
    rows = {entry.name: Row(entry.name, None, None, None, None, False, note="not checked") for entry in entries}
    ordered = sorted(entries, key=lambda e: (e.config != "SMALL", e.config, e.seed, e.item))
    for (config, seed), of_config in itertools.groupby(ordered, key=lambda e: (e.config, e.seed)):
        model = Model(recording, config, seed)
        for item, group in itertools.groupby(of_config, key=lambda e: e.item):
            start = time.perf_counter()
            for row in _checked(model, item, list(group)):
                rows[row.name] = row
            progress(f"{config} {item}: {time.perf_counter() - start:.1f} s")
            if model.clip.remat:  # the full configuration: weights and compiled programs of one item at a time
                model = Model(recording, config, seed)
                jax.clear_caches()
                gc.collect()
    unlisted = [Row(name, None, None, None, None, False, note="not in the manifest") for name in recording.unlisted(set(items))]
    return [*rows.values(), *unlisted]


def _checked(model: Model, item: str, entries: list[Entry]) -> Iterator[Row]:
    answer = answer_of(item)
    if answer is None:
        return
    judged = set()
    try:
        for found in answer(model, entries):
            judged.add(found.entry.name)
            yield _row(model.recording, found)
    except ParityError:
        raise
    except Exception as error:  # noqa: BLE001  one item that breaks must not hide the verdicts of the others
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        for name in (entry.name for entry in entries if entry.name not in judged):
            yield Row(name, None, None, None, None, False, note=f"not checked, item {item} broke: {text}")


def _row(recording: Recording, found: Found) -> Row:
    entry, theirs = found.entry, recording.array(found.entry.name)
    if not found.by_design:
        return judge(entry.name, found.value, theirs, entry.about)
    if (entry.item, entry.key) not in BY_DESIGN:
        raise ParityError(f"{entry.name} may not part from the recorded array")
    row = judge(entry.name, found.value, found.instead, entry.about)
    return Row(row.name, row.max_abs, row.rms, row.allowed_abs, row.allowed_rms, row.ok, found.by_design, row.note)

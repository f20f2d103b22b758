"""Where the evaluations of one work directory lie, each apart from the others.

WORKDIR/eval has the scores of the first one, WORKDIR/evaluations/NAME-KEY those of every other. results.json, scores.csv,
report.html and pictures/ in WORKDIR are of the evaluation asked for last; those of another wait in its folder. KEY is the hash of
what was evaluated: the settings that concern it, the records, the surface stream.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.files import locked, write_json
from experiments import identity, scans

RESULTS = "results.json"
FILES = (RESULTS, "scores.csv", "report.html", "pictures")  # the results last to come and first to go: they vouch for the others
MARK = "evaluation.json"  # in a folder of scores: whose they are


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the model of a work directory."""

    workdir: Path
    name: str
    key: str

    @property
    def apart(self) -> Path:
        return self.workdir / "evaluations" / f"{self.name}-{self.key}"

    @property
    def is_first(self) -> bool:
        return _mark(self.workdir).get("key") == self.key

    @property
    def home(self) -> Path:
        """The folder of its scores (home/eval), and of its files while it is the last one asked for or not the first."""
        return self.workdir if self.is_first else self.apart

    def claim(self, about: dict[str, Any]) -> None:
        """Takes WORKDIR/eval if no evaluation has it, and says in the folder of scores whose they are.

        Args:
          about: "settings" (identity.settings), kept beside the scores.
        """
        with locked(self.workdir / ".evaluations.lock"):
            first = _mark(self.workdir)
            if not first and any((self.workdir / "eval").glob("*/*.npz")) and _earlier(self.workdir) != about["settings"]:
                first = {"key": "earlier", "name": "earlier"}
                write_json(self.workdir / "eval" / MARK, first)
            home = self.workdir if first.get("key") in (None, self.key) else self.apart
            if _mark(home).get("key") != self.key:
                (home / "eval").mkdir(parents=True, exist_ok=True)
                write_json(home / "eval" / MARK, {"key": self.key, "name": self.name, **about})

    def show(self) -> None:
        """Brings its files to the work directory; nothing of the ones there is lost."""
        top, first = self.workdir / RESULTS, _mark(self.workdir)
        if _of(top).get("key") == self.key and (self.is_first or all(_same(self.apart / n, self.workdir / n) for n in FILES)):
            return
        with locked(self.workdir / ".evaluations.lock"):
            there = _of(top).get("key")
            if there != self.key:
                if top.exists() and there in (None, first.get("key")):  # its only copy
                    _move(self.workdir, Evaluation(self.workdir, first["name"], first["key"]).apart)
                for name in FILES:
                    _remove(self.workdir / name)
            if self.is_first:
                _move(self.apart, self.workdir)
            else:
                for name in reversed(FILES):
                    _copy(self.apart / name, self.workdir / name)


def of(workdir: Path, config: ConfigDict, records_key: str, more: Any = None) -> Evaluation:
    """The evaluation that a configuration asks for, on these records; `more`: what else its scores depend on."""
    content = [identity.settings(config, places=False), records_key, more]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return Evaluation(workdir, config.target.name or config.data.name, key)


def find(workdir: Path, config: ConfigDict) -> Path | None:
    """The results of what the configuration asks for, of the model that it describes; None where they are not there."""
    if identity.differing(config, workdir):
        return None
    wanted = identity.settings(config)
    for path in (workdir / RESULTS, *sorted(workdir.glob(f"evaluations/*/{RESULTS}"))):
        if path.exists():
            settings = _of(path).get("settings") or _earlier(workdir)
            if settings in (wanted, None):
                return path
    return None


def finished(config: ConfigDict, workdir: Path) -> dict | None:
    """The results of what the configuration asks for, where they are complete and of the scans that are here; else None."""
    path = find(workdir, config)
    if path is None:
        return None
    results = json.loads(path.read_text())
    key = results.get("evaluation", {}).get("records")
    return None if key and scans.planned_key(config) not in (None, key) else results


def home_of_page(config: ConfigDict, workdir: Path) -> Path:
    """The folder of the configuration's finished evaluation, where its page lies. A page that shows other pictures or comparisons
    than are asked for is taken away, as it is made anew."""
    path = find(workdir, config)
    this = path and of_results(path)
    if this and this.is_first:
        this.show()  # its page is written where that of another may be shown
    home = this.home if this else workdir
    mark, now = home / "eval" / MARK, identity.shown(config)
    about = json.loads(mark.read_text()) if mark.exists() else {}
    if about and about.get("shown") != now:
        if "shown" in about:
            (home / "report.html").unlink(missing_ok=True)
        write_json(mark, about | {"shown": now})
    return home


def show(results: Path) -> None:
    """Brings the evaluation that wrote this results.json to its work directory."""
    this = of_results(results)
    if this:
        this.show()


def of_results(path: Path) -> Evaluation | None:
    """The evaluation that wrote a results.json; None where an earlier version did."""
    about = _of(path)
    workdir = path.parent if path.parent.parent.name != "evaluations" else path.parent.parent.parent
    return Evaluation(workdir, about["name"], about["key"]) if "key" in about else None


def _earlier(workdir: Path) -> dict | None:
    """What scores and results are of that do not say it: earlier versions allowed one evaluation a work directory, its
    config.json's."""
    there = identity.held(workdir)
    return None if there is None else identity.settings(there)


def _mark(home: Path) -> dict:
    path = home / "eval" / MARK
    return json.loads(path.read_text()) if path.exists() else {}


def _of(results: Path) -> dict:
    return json.loads(results.read_text()).get("evaluation", {}) if results.exists() else {}


def _move(source: Path, target: Path) -> None:
    """FILES from one folder to another, the results first away and last there."""
    target.mkdir(parents=True, exist_ok=True)
    if (source / RESULTS).exists():
        (source / RESULTS).replace(target / f".{RESULTS}")
    for name in FILES[1:]:
        if (source / name).exists():
            _remove(target / name)
            (source / name).replace(target / name)
    if (target / f".{RESULTS}").exists():
        (target / f".{RESULTS}").replace(target / RESULTS)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            _copy(path, target / path.name)
    elif source.exists() and not _same(source, target):
        half = target.with_name(f".{target.name}.half")
        shutil.copyfile(source, half)
        half.replace(target)


def _same(source: Path, target: Path) -> bool:
    """Whether nothing of `source` is to be copied."""
    if source.is_dir():
        return all(_same(path, target / path.name) for path in source.iterdir())
    return not source.exists() or (target.exists() and filecmp.cmp(source, target, shallow=False))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""The folder of an inspection: what is in it, what belongs to whom, and how a killed command goes on.

    inspection.json     what the folder is, and the settings that its scores depend on
    results.jsonl       a line a part, written when all else of the part is there
    results.csv         the same as a table
    parts/NAME.ply, parts/NAME.json
    failures.txt        a line for each scan of the last call that could not be inspected, where there are any

Only what lies in a folder that this command began is ever written over, and of that neither a file that is read by the same
call nor one that was changed since.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.files import write_atomic
from data_pipelines.scan import DataError
from gsclip_jax.inspection.part_files import json_text
from gsclip_jax.runtime.names import csv_text, decoded, file_part, one_line

MARK, LINES, TABLE, PARTS, FAILURES, BEGUN = (
    "inspection.json", "results.jsonl", "results.csv", "parts", "failures.txt", ".begun.json",
)  # fmt: skip
KIND, FORMAT = "gsclip inspection", 1
OWN = (LINES, TABLE, PARTS, FAILURES, "index.html", "page_parts", "calibration.json", "calibration.safetensors")
ENDINGS = (".ply", ".json")
COLUMNS = ("name", "source", "verdict", "p_value", "score", "highest_point_score", "suspicious_points", "points", "removed",
           "threshold", "point_threshold", "reason", "notes")  # fmt: skip


class Store:
    """The results in one folder; one process at a time has it.

    Args:
      folder: made where there is none.
      settings: JSON; what scores and verdicts depend on. A folder of other settings is refused.
      inputs: files that are read by this call and stay as they are.

    Raises:
      DataError: the folder cannot be written, is another process's, holds other files under our names, or results of other
        settings; nothing has been written then.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], inputs: Iterable[Path]):
        self.folder, self._settings = folder, json.loads(json.dumps(settings))
        self._inputs = {key for path in inputs if (key := _identity(path))}
        self.rows: dict[str, dict] = {}  # name -> its line
        check_writable(folder)
        self._check()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        if not (folder / MARK).exists():
            write_atomic(folder / MARK, json.dumps({"kind": KIND, "format": FORMAT, "settings": self._settings}, indent=1) + "\n")
        (folder / PARTS).mkdir(exist_ok=True)
        self._open()

    def _check(self) -> None:
        mark = self.folder / MARK
        if not os.path.lexists(mark):
            there = [name for name in OWN if os.path.lexists(self.folder / name)]
            if there:
                raise DataError(f"--out {self.folder}: {there[0]} there was not written by this command and stays as it is; "
                                "choose another --out")  # fmt: skip
            return
        try:
            known = json.loads(mark.read_text(encoding="utf-8"))
            if mark.is_symlink() or known["kind"] != KIND or known["format"] != FORMAT:
                raise ValueError
            before = known["settings"]
        except (ValueError, KeyError, TypeError, OSError):
            raise DataError(f"{mark} was not written by this command and stays as it is; choose another --out") from None
        changed = [key for key in {**before, **self._settings} if before.get(key) != self._settings.get(key)]
        if changed:
            raise DataError(f"--out {self.folder} holds results of other settings ({', '.join(sorted(changed))} differ); choose "
                            "another --out, or give the same options")  # fmt: skip
        for name in OWN:
            self._refuse_foreign(self.folder / name)

    def _refuse_foreign(self, path: Path) -> None:
        if path.is_symlink() or _identity(path) in self._inputs:
            raise DataError(f"{path} is a link or a scan of this call and stays as it is; choose another --out")

    def _open(self) -> None:
        """Reads the lines that are there; a last one that was cut short, and parts whose scan was cut short, go."""
        path, lines = self.folder / LINES, []
        content = path.read_bytes() if path.exists() else b""
        for line in content.split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and {"name", "path", "part"} <= row.keys():
                    lines.append(row)
        for row in lines:
            self.rows[row["name"]] = row
        whole = self._by_source()
        self.rows = {name: row for name, row in self.rows.items() if len(whole[row["path"]]) == row["part"][1]}
        self._by_path = self._by_source()
        text = "".join(json_text(row) + "\n" for row in self.rows.values())
        if text.encode() != content:
            write_atomic(path, text)
        write_atomic(self.folder / TABLE, table_text(self.rows.values()))
        self._lines, self._table = (open(self.folder / name, "a", encoding="utf-8", newline="") for name in (LINES, TABLE))

    def _by_source(self) -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for row in self.rows.values():
            found.setdefault(row["path"], []).append(row)
        return found

    def done(self, scan: Path) -> bool:
        """Whether all parts of a scan are there, and the scan has not changed since."""
        rows, stamp = self._by_path.get(decoded(os.path.abspath(scan)), ()), _stamp(scan)
        return bool(rows) and all(row["stamp"] == stamp for row in rows)

    def names_for(self, scan: Path, count: int) -> list[str]:
        """Names of the parts of a scan: those it has, else its own, with a number where that is taken."""
        place = decoded(os.path.abspath(scan))
        before = [row["name"] for row in self._by_path.get(place, ())]
        begun = self._begun()
        before = before or (begun["names"] if begun.get("path") == place else [])
        taken = {_folded(name) for name, row in self.rows.items() if row["path"] != place}
        names: list[str] = []
        for at in range(count):
            stem = one_line(scan.name[: -len(".gz")] if scan.name.lower().endswith(".gz") else scan.name).rpartition(".")[0]
            stem = file_part(decoded(stem or one_line(scan.name)) + (f" part {at + 1}" if count > 1 else ""))
            name, number = before[at] if at < len(before) else stem, 2
            while _folded(name) in taken or (name not in before and self._exists(name)):
                name, number = f"{stem}_{number}", number + 1
            names.append(name)
            taken.add(_folded(name))
        return names

    def _exists(self, name: str) -> bool:
        return any(os.path.lexists(self.folder / PARTS / f"{name}{ending}") for ending in ENDINGS)

    def _begun(self) -> dict:
        try:
            found = json.loads((self.folder / BEGUN).read_text(encoding="utf-8"))
            return found if isinstance(found.get("names"), list) else {}
        except (OSError, ValueError, AttributeError):
            return {}

    def begin(self, scan: Path, names: Sequence[str]) -> None:
        """Notes whose files come next: after a kill they are known as half a part's. A file of that name that is read by this
        call, or a link, is refused."""
        for name in names:
            for ending in ENDINGS:
                self._refuse_foreign(self.folder / PARTS / f"{name}{ending}")
        write_atomic(self.folder / BEGUN, json.dumps({"path": decoded(os.path.abspath(scan)), "names": list(names)}))

    def write(self, name: str, ending: str, content: bytes | str) -> None:
        """A file of a part that was begun."""
        write_atomic(self.folder / PARTS / f"{name}{ending}", content)

    def commit(self, scan: Path, rows: Sequence[dict]) -> None:
        """The parts of a scan are there: their lines are written, all or none."""
        place, stamp = decoded(os.path.abspath(scan)), _stamp(scan)
        rows = [{**row, "path": place, "stamp": stamp, "part": [at, len(rows)]} for at, row in enumerate(rows, 1)]
        old = [row["name"] for row in self._by_path.get(place, ())]
        self._by_path[place] = rows
        for name in old:
            del self.rows[name]
        self.rows |= {row["name"]: row for row in rows}
        if old:  # scored again: its old lines go
            self._close_files()
            write_atomic(self.folder / LINES, "".join(json_text(row) + "\n" for row in self.rows.values()))
            self._open()
            return
        self._lines.write("".join(json_text(row) + "\n" for row in rows))
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._table.write(table_text(rows, head=False))
        self._table.flush()

    def failed(self, lines: Sequence[str]) -> None:
        """Writes which scans of this call could not be inspected, or removes the list of the call before."""
        if lines:
            write_atomic(self.folder / FAILURES, "".join(f"{one_line(line)}\n" for line in lines))
        else:
            (self.folder / FAILURES).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process have the folder."""
        self._close_files()
        os.close(self._lock)

    def _close_files(self) -> None:
        for file in (self._lines, self._table):
            file.close()


def table_text(rows: Iterable[Mapping[str, Any]], head: bool = True) -> str:
    """Rows as CSV; text that a spreadsheet would compute is kept from it (`runtime.names.csv_text`)."""
    out = io.StringIO()
    writer = csv.writer(out)
    if head:
        writer.writerow(COLUMNS)
    for row in rows:
        verdict = row["verdict"] or {}
        flat = {**row, **{key: verdict.get(key) for key in ("p_value", "threshold", "point_threshold", "reason")},
                "verdict": verdict.get("kind"), "notes": "; ".join(row["notes"])}  # fmt: skip
        writer.writerow([_cell(flat[column]) for column in COLUMNS])
    return out.getvalue()


def _cell(value: Any) -> Any:
    return "" if value is None else csv_text(one_line(value)) if isinstance(value, str) else value


def check_writable(folder: Path) -> None:
    """Raises DataError where a folder is a file or cannot be made or written; makes nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise DataError(f"--out {folder}: {there} is no folder; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DataError(f"--out {folder}: no permission to write into {there}; choose another --out")


def _lock(folder: Path) -> int:
    """Held until the process ends, however it does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(f"--out {folder}: another inspection is writing there; wait for it, or choose another --out") from None
    except OSError:  # network folders may not lock: two calls at once are then the user's own care
        pass
    return handle


def _stamp(scan: Path) -> list[int]:
    try:
        found = os.stat(scan)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file and all links to it have in common; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # reading it will say what is wrong
        return None
    return found.st_dev, found.st_ino


def _folded(name: str) -> str:
    """Equal for names that are one file on some file systems."""
    return unicodedata.normalize("NFC", name).casefold()

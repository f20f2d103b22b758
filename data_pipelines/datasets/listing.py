"""What lies in the folders of a data set: the files and folders that are meant, and what was left out, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from data_pipelines.scan import DataError, Sample, Scan, did_you_mean

IsCategory = Callable[[Path, "Listing"], bool]  # whether a folder is one, by what the listing finds in it

# Folders and files that file servers and operating systems put beside what is kept there. In small letters.
SYSTEM = frozenset((
    "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "~snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "__macosx", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "icon\r"))  # fmt: skip
HIDDEN = "hidden, or of a system"
SHOWN = 3  # names in a line
KEPT = 20  # names in records.json


class Listing:
    """Lists folders and remembers what it leaves out. Order is natural: 99_good before 105_good.

    A folder that is not there is empty. One that cannot be entered is empty as well, and left out.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = root  # names are told from here
        self._left: dict[str, dict[Path, None]] = {}  # why -> what
        self.barred: set[Path] = set()  # folders that cannot be entered

    def leave(self, path: Path, why: str) -> None:
        self._left.setdefault(why, {})[Path(path)] = None

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder."""
        found, _ = self._entries(folder, folders=True)
        return found

    def files(self, folder: Path, kinds: Sequence[str], beside: bool = False) -> list[Path]:
        """The files in a folder that end in one of `kinds` ('.png'), in any spelling. Of several that differ in their ending
        alone the one whose ending comes first in `kinds` and is spelt so, unless `beside` (then all). The rest is left out."""
        folders, files = self._entries(folder, files=True)
        for path in folders:
            self.leave(path, "a folder where files are expected")
        wanted = [path for path in files if path.suffix.lower() in kinds]
        for path in sorted(set(files) - set(wanted)):
            self.leave(path, f"not {' or '.join(kind[1:] for kind in kinds)}" if len(kinds) < 4 else "another format")
        if beside:
            return wanted
        best: dict[str, Path] = {}
        for path in sorted(wanted, key=lambda path: (kinds.index(path.suffix.lower()), path.suffix not in kinds, path.suffix)):
            if best.setdefault(path.stem, path) != path:
                self.leave(path, "differs in its ending alone from a file that is read")
        return sorted(best.values(), key=natural)

    def everything(self, folder: Path) -> list[Path]:
        """All files in a folder that nobody hid."""
        _, files = self._entries(folder, files=True)
        return files

    def lines(self) -> list[str]:
        """What was left out, a line each kind, with the first names."""
        return [f"left out, {row['why']}: {row['count']} ({', '.join(row['names'][:SHOWN])}{', ...' * (row['count'] > SHOWN)})"
                for row in self.rows()]

    def rows(self) -> list[dict]:
        """What was left out, for a file: why, count, names (not all, where they are many)."""
        return [{"why": why, "count": len(paths), "names": [self._name(path) for path in sorted(paths)[:KEPT]]}
                for why, paths in self._left.items()]

    def bar(self, folder: Path, error: OSError) -> None:
        """Leaves out a folder that cannot be entered."""
        if not os.access(folder.parent, os.X_OK):  # nor can the one it is in: that is what to tell
            folder = folder.parent
        if any(folder.is_relative_to(known) for known in self.barred):
            return
        self.barred.add(folder)
        self.leave(folder, f"cannot be entered ({error.strerror or type(error).__name__})")

    def add_barred(self, other: Listing) -> None:
        """Leaves out what another listing could not enter."""
        for why, paths in other._left.items():
            for path in other.barred.intersection(paths):
                self.barred.add(path)
                self.leave(path, why)

    def _name(self, path: Path) -> str:
        name = str(path.relative_to(self.root) if self.root is not None and path.is_relative_to(self.root) else path)
        return printable(name)

    def _entries(self, folder: Path, folders: bool = False, files: bool = False) -> tuple[list[Path], list[Path]]:
        """The folders and the files in a folder. What else there is among the wanted ones (files: both) is left out."""
        try:
            with os.scandir(folder) as entries:
                found = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        except OSError as error:
            self.bar(Path(folder), error)
            return [], []
        kept: tuple[list[Path], list[Path]] = [], []
        for entry in found:
            path, kind = Path(entry.path), _kind(entry)
            if kind == "folder" or files:
                if entry.name.startswith((".", "~$")) or entry.name.lower() in SYSTEM:
                    self.leave(path, HIDDEN)
                elif not _utf8(entry.name):
                    self.leave(path, "a name that is not UTF-8 (rename it)")
                elif kind == "folder":
                    kept[0].append(path)
                elif kind == "file":
                    kept[1].append(path)
                else:
                    self.leave(path, kind)
            elif folders and kind == "a link that leads nowhere":
                self.leave(path, kind)
        return sorted(kept[0], key=natural), sorted(kept[1], key=natural)


class Partners:
    """The files of one folder, to be asked for by stem and ending; endings are found in any spelling."""

    def __init__(self, folder: Path, listing: Listing | None = None):
        self.folder, self._listing = folder, listing
        self._names: dict[str, list[str]] = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _kind(entry) == "file":
                        self._names.setdefault(entry.name.lower(), []).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if listing is not None:
                listing.bar(folder, error)

    def find(self, stem: str, *endings: str) -> Path:
        """The file `stem` + the first of the endings that there is, or where it would be."""
        found = [name for ending in endings for name in sorted(self._names.get((stem + ending).lower(), ()),
                                                               key=lambda name: (name != stem + ending, name))
                 if name.startswith(stem)]
        for name in found[1:] if self._listing else ():
            self._listing.leave(self.folder / name, "differs in its ending alone from a file that is read")
        return self.folder / (found[0] if found else stem + endings[0])

    def has(self, stem: str, *endings: str) -> bool:
        return self.find(stem, *endings).name.lower() in self._names

    def names(self) -> list[str]:
        return sorted(name for names in self._names.values() for name in names)


def spelt(path: Path) -> Path:
    """A file in whichever spelling of its ending it has; the path itself where there is none."""
    return path if os.path.isfile(path) else Partners(path.parent).find(path.stem, path.suffix.lower())


def _kind(entry: os.DirEntry) -> str:
    """'folder', 'file', or why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:
        return f"not readable ({error.strerror})"
    return "a link that leads nowhere" if entry.is_symlink() else "neither a file nor a folder"


def _utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A text in one line, with what a terminal would obey or could not show written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_good(name: str) -> bool:
    """Whether a folder's name says that its scans are sound."""
    return name.lower() == "good"


def natural(path: Path) -> tuple:
    """Sort key of a file or folder that puts 99_good before 105_good."""
    parts = re.split(r"(\d+)", path.stem)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], path.suffix, path.name


def find_root(root: str | Path, holds: Sequence[IsCategory], layout: str, depth: int = 3) -> Path:
    """The folder at or at most `depth` levels under `root` that holds the category folders.

    Args:
      holds: whether a folder is the one, as it lists what is in it; the later ones are asked where none is by the earlier.

    Raises:
      DataError: `root` is missing, holds nothing of that `layout`, or holds it in several places.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"data root {root} does not exist or is no folder; set config.data.root to the unpacked data set")
    probe = Listing(root)
    levels = [[root]]
    for _ in range(depth):
        levels.append([child for folder in levels[-1] for child in probe.folders(folder)])
    for test in holds:
        for level in levels:
            found = [folder for folder in level if test(folder, probe)]
            if len(found) > 1:
                names = ", ".join(str(folder) for folder in found)
                raise DataError(f"data root {root} holds several data sets ({names}); set config.data.root to one of them")
            if found:
                return found[0]
    why = "; ".join(probe.lines())
    raise DataError(f"data root {root} holds no category folder laid out as {layout}, up to {depth} levels down"
                    f"{f' ({why})' if why else ''}")


def find_categories(root: str | Path, is_category: IsCategory, layout: str) -> tuple[Path, list[str], Listing]:
    """The folder that holds category folders, their names, and a listing that has left out its other folders.

    Raises:
      DataError: as `find_root`.
    """

    def holds(folder: Path, listing: Listing) -> bool:
        return any(is_category(child, listing) for child in listing.folders(folder))

    home = find_root(root, [holds], layout)
    listing = Listing(home)
    return home, [folder.name for folder in categories_in(home, is_category, layout, listing)], listing


def categories_in(home: Path, is_category: IsCategory, layout: str, listing: Listing) -> list[Path]:
    """The category folders in `home`; the others are left out."""
    found, probe = [], Listing()
    for folder in listing.folders(home):
        probe.folders(folder)  # whether it can be entered at all
        is_one = is_category(folder, probe)
        listing.add_barred(probe)
        if is_one:
            found.append(folder)
        elif not any(path.is_relative_to(folder) for path in listing.barred):
            listing.leave(folder, f"no category (nothing laid out as {layout})")
    return sorted(found, key=lambda folder: folder.name)


def unknown_category(category: str, known: list[str], root: Path) -> DataError:
    """The error for a category that is not there, with what is."""
    return DataError(f"no category {category!r} in {root}{did_you_mean(category, known)}; found: {', '.join(known)}")


class Reader(Protocol):
    """A data set on disk."""

    name: str
    root: Path  # the folder that holds the categories
    listing: Listing  # what was left out, as far as categories and samples were asked for

    def categories(self) -> list[str]:
        """Names of all categories found, sorted."""

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """All scans of a category and split, in a fixed order. Raises DataError for an unknown category."""

    def colour(self, sample: Sample) -> Path | None:
        """What its coloured views are made from (`colours.coloured`): its photograph, a file of its points' colours, or a folder
        of pictures that are there already. None where the data set has no colour; the file itself may be missing."""

    def load(self, sample: Sample) -> Scan:
        """Reads one scan. Raises DataError naming the file when it cannot be used."""

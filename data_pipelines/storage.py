"""Work directories and caches on object stores (`s3://`, `gs://`): each is worked on through a local copy of it.

Everything else of the project sees paths. `opened` turns what a user gives into one: a path stays as it is, and all other
functions here do nothing for it. A URL becomes a folder of this machine (`GSCLIP_MIRROR`, else the user's cache folder) that
stands for it; `pull` makes the folder what the store holds, `push` the store what the folder holds, whole files each. The store
is the truth: what was not pushed when a machine was lost is done again.

Object stores rename nothing and lock nothing. A folder whose files belong together (records, features, a checkpoint) is there
once its mark is, which is written last, under the name that Orbax gives it on such stores; it lists the files with their sizes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.files import locked, user_cache, write_atomic

MARK = "commit_success.txt"
# Files that say that the files beside them are there: they come last, and where they change they go first.
VOUCHING = (MARK, "records.json", "meta.json", "results.json", "config.json")
SYNCED = ".synced.json"  # in a local copy: what of it the store had when it was last pulled or pushed
TEMPORARY = re.compile(r"(^|/)\.|\.orbax-checkpoint-tmp|\.unfinished(/|$)")  # of the local copy alone
WRITTEN = re.compile(r"(^|/)log\.txt$")  # by whoever started the process, while it works here
CHECKPOINT = re.compile(r"(?:^|.*/)checkpoints/\d+(?=/)")
SETTLE_S = 5.0  # longer than two machines take that saw the same object missing, to write it
KINDS = {  # scheme -> the package that knows it, the extra that brings it, where access comes from
    "s3": ("s3fs", "s3", "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; of another store AWS_ENDPOINT_URL"),
    "gs": ("gcsfs", "gs", "gcloud auth application-default login, or a service account"),
    "memory": ("fsspec", "s3", "none"),  # of this process alone, for tests
}


class StorageError(ValueError):
    """An object store that cannot be used; one line says which, why, and what to do."""


@dataclass(frozen=True)
class Store:
    """One place on an object store and the folder that stands for it."""

    url: str
    folder: Path
    fs: Any  # fsspec's file system
    prefix: str
    conditional: bool = True  # a put can ask that there be no such object yet

    def key(self, path: Path) -> str:
        """The store's name of a path in the folder."""
        below = path.relative_to(self.folder).as_posix()
        return self.prefix if below == "." else f"{self.prefix}/{below}"

    def listing(self, path: Path) -> dict[str, dict]:
        """What lies below a path: its path under it -> what the store says of it."""
        start = self.key(path)
        try:
            found = self.fs.find(start, detail=True)
        except FileNotFoundError:
            return {}
        return {name[len(start) + 1 :]: about for name, about in found.items() if name.startswith(f"{start}/")}


_stores: dict[Path, Store] = {}


def opened(place: str | Path, *, write: bool = True) -> Path:
    """The path to work with: `place` itself, or the folder that stands for a URL. Nothing is fetched.

    Raises:
      StorageError: a scheme that is not known, a missing package, no such bucket, no access. `write`: found by writing a few
        bytes.
    """
    if not is_url(place):
        return Path(place)
    text = str(place)
    scheme, _, rest = text.partition(":")
    rest = rest.strip("/")
    if scheme not in KINDS:
        raise StorageError(f"{text}: no storage of the kind {scheme}://; give a path, s3://BUCKET/... or gs://BUCKET/...")
    url = f"{scheme}://{rest}"
    folder = mirrors() / scheme / rest
    if folder not in _stores:
        store = _connect(scheme, url, folder)
        conditional = _try(store, write)
        folder.mkdir(parents=True, exist_ok=True)
        _stores[folder] = dataclasses.replace(store, conditional=conditional)
    return folder


def is_url(place: str | Path) -> bool:
    """Whether it names a place on a store."""
    found = re.match(r"([a-zA-Z][\w+.-]*):/+(?=[^/])", str(place))  # pathlib takes one of the two slashes away
    return bool(found) and (found[1] in KINDS or "://" in str(place))


def mirrors() -> Path:
    """Where the local copies lie."""
    if given := os.environ.get("GSCLIP_MIRROR"):
        return Path(given).absolute()
    try:
        return user_cache("mirror")
    except RuntimeError:  # nobody's home
        return Path(tempfile.gettempdir()) / "gsclip_jax" / "mirror"


def store_of(path: Path) -> Store | None:
    """The store that a path stands for something on; None for a path that is only a path."""
    if not _stores:
        return None
    return next((_stores[folder] for folder in (path, *path.parents) if folder in _stores), None)


def named(text: str) -> str:
    """A text for the user: folders that stand for a URL under that name."""
    for folder, store in sorted(_stores.items(), key=lambda item: -len(str(item[0]))):
        text = text.replace(str(folder), store.url)
    return text


def _connect(scheme: str, url: str, folder: Path) -> Store:
    package, extra, _ = KINDS[scheme]
    try:
        importlib.import_module(package)
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise StorageError(f"{url} needs the package {package} ({error}): pip install 'gsclip-jax[{extra}]'") from None
    settings = {"config_kwargs": {"connect_timeout": 10}} if scheme == "s3" else {}
    fs, prefix = url_to_fs(url, use_listings_cache=False, **settings)  # others write there, too
    return Store(url, folder, fs, prefix.rstrip("/"))


def _try(store: Store, write: bool) -> bool:
    """Whether the place knows conditional puts. Raises StorageError where it cannot be read, or written."""
    probe = f"{store.prefix}/.probe-{uuid.uuid4().hex[:12]}"
    try:
        if not write:
            store.fs.ls(store.prefix.split("/")[0] if store.url.startswith(("s3:", "gs:")) else "/")
            return False
        store.fs.pipe_file(probe, b"probe")
        try:
            return not put_new(store.fs, probe, b"again")
        finally:
            store.fs.rm_file(probe)
    except Exception as error:  # each library has its own
        scheme = store.url.partition(":")[0]
        kind = "no such bucket" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200] or repr(error)
        raise StorageError(f"{store.url} cannot be {'written' if write else 'read'}: {kind}; access comes from {KINDS[scheme][2]}"
                           ) from error  # fmt: skip


def put_new(fs: Any, key: str, content: bytes) -> bool:
    """A conditional put (S3's If-None-Match, GCS's generation match): False where the store refused it."""
    try:
        fs.pipe_file(key, content, mode="create")
        return True
    except NotImplementedError:
        fs.pipe_file(key, content)
        return True
    except Exception as error:
        if _exists(error):
            return False
        raise


def _exists(error: BaseException | None) -> bool:
    """Whether a conditional put met an object that is there, in the words of the stores."""
    while error is not None:
        words = f"{type(error).__name__} {error}"
        if isinstance(error, FileExistsError) or any(word in words for word in ("PreconditionFailed", "RequestConflict", "412")):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- files that change: work directories


def pull(path: Path, wanted: Callable[[str], bool] | None = None) -> None:
    """Makes the local copy of a folder what the store holds of it: fetches what differs, removes what is not there.

    Args:
      wanted: only the files below `path` for which this is true; nothing is removed then.

    Raises:
      OSError: a file came in another length.
    """
    store = store_of(path)
    if store is None:
        return
    everything = store.listing(path)
    listing = {name: about for name, about in everything.items() if not TEMPORARY.search(name) and (not wanted or wanted(name))}
    listing = _committed(store, path, listing, everything)
    known, here = _synced(path), _files(path)
    missing = [name for name, about in listing.items() if known.get(name) != [_tag(about), here.get(name)]
               and not (name in here and WRITTEN.search(name))]  # fmt: skip
    for name in [] if wanted else here.keys() - listing.keys():
        if not WRITTEN.search(name):
            (path / name).unlink(missing_ok=True)
    missing.sort(key=_rank)
    parts = [(path / name).with_name(f".{uuid.uuid4().hex[:12]}.part") for name in missing]
    try:
        for name in missing:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
        if missing:
            store.fs.get([f"{store.key(path)}/{name}" for name in missing], [str(part) for part in parts])
        for name, part in zip(missing, parts, strict=True):
            if part.stat().st_size != listing[name]["size"]:
                raise OSError(f"{store.url}: {name} came with {part.stat().st_size} of {listing[name]['size']} bytes; try again")
        for name, part in zip(missing, parts, strict=True):
            part.replace(path / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    here = _files(path)
    kept = {name: row for name, row in known.items() if name in here} if wanted else {}
    there = {name: [_tag(about), here.get(name)] for name, about in listing.items()}
    _note(path, kept | {name: row for name, row in there.items() if name in missing or name in known})


def push(path: Path, wanted: Callable[[str], bool] | None = None) -> None:
    """Makes the store hold what the local copy of a folder does. What vouches for other files comes last, and where it changes
    or goes, goes first: a machine that is lost meanwhile leaves nothing that would be taken for whole.

    Args:
      wanted: only the files below `path` for which this is true.
    """
    store = store_of(path)
    if store is None:
        return
    _mark_checkpoints(path)
    known, here = _synced(path), _files(path)
    if wanted:
        known, here = ({name: row for name, row in rows.items() if wanted(name)} for rows in (known, here))
    new = sorted((name for name, stamp in here.items() if known.get(name, [None, None])[1] != stamp),
                 key=lambda name: (_rank(name), here[name][1]))  # fmt: skip
    old = [name for name in known if name not in here or (name in new and _rank(name))]
    if not new and not old:
        return
    start = store.key(path)
    for name in sorted(old, key=_rank, reverse=True):
        if store.fs.exists(f"{start}/{name}"):
            store.fs.rm_file(f"{start}/{name}")
    first = [name for name in new if not _rank(name)]
    if first:
        store.fs.put([str(path / name) for name in first], [f"{start}/{name}" for name in first])
    for name in new[len(first) :]:
        store.fs.put_file(str(path / name), f"{start}/{name}")
    tags = {name: _tag(about) for name, about in store.listing(path).items()}
    kept = {name: row for name, row in _synced(path).items() if name not in new and name not in old}
    _note(path, kept | {name: [tags[name], here[name]] for name in new if name in tags})


def _rank(name: str) -> int:
    """0 for a file that vouches for none, else its place among those that do: the mark is the very last."""
    last = name.rpartition("/")[2]
    return len(VOUCHING) - VOUCHING.index(last) if last in VOUCHING else 0


def _files(path: Path) -> dict[str, list[int]]:
    """Size and time of every file of a local copy, by its path under it."""
    found = {}
    for folder, _, names in os.walk(path):
        below = Path(folder).relative_to(path).as_posix()
        for name in names:
            full = name if below == "." else f"{below}/{name}"
            if not TEMPORARY.search(full):
                status = os.stat(os.path.join(folder, name))
                found[full] = [status.st_size, status.st_mtime_ns]
    return found


def _synced(path: Path) -> dict[str, list]:
    try:
        return json.loads((path / SYNCED).read_text())
    except (OSError, ValueError):
        return {}


def _note(path: Path, rows: dict[str, list]) -> None:
    write_atomic(path / SYNCED, json.dumps(rows))


def _tag(about: dict) -> list:
    """What tells two versions of an object apart."""
    keys = ("ETag", "etag", "generation", "md5Hash", "LastModified", "created")
    return [about.get("size"), next((str(about[key]) for key in keys if about.get(key)), "")]


def _mark_checkpoints(path: Path) -> None:
    """Writes the mark of every checkpoint that has none yet; Orbax's own are whole once they have their name."""
    for name in {found[0] for name in _files(path) if (found := CHECKPOINT.match(name))}:
        if not (path / name / MARK).exists():
            _mark(path / name)


def _mark(path: Path) -> None:
    sizes = {name: stamp[0] for name, stamp in _files(path).items() if name != MARK}
    write_atomic(path / MARK, json.dumps({"id": uuid.uuid4().hex, "files": sizes}))


def _committed(store: Store, path: Path, wanted: dict[str, dict], listing: dict[str, dict]) -> dict[str, dict]:
    """What is wanted of a listing, without checkpoints that were not written to their end."""
    folders = {found[0] for name in wanted if (found := CHECKPOINT.match(name))}
    torn = {folder for folder in folders if not _whole(store, f"{store.key(path)}/{folder}", listing, f"{folder}/")}
    return {name: about for name, about in wanted.items() if not ((found := CHECKPOINT.match(name)) and found[0] in torn)}


def _whole(store: Store, key: str, listing: Collection[str], before: str = "") -> bool:
    """Whether a folder has its mark, and all that the mark lists."""
    if before + MARK not in listing:
        return False
    try:
        files = json.loads(store.fs.cat_file(f"{key}/{MARK}"))["files"]
    except (ValueError, KeyError, TypeError):  # Orbax's own mark says nothing of its files
        return True
    return all(before + name in listing and listing[before + name]["size"] == size for name, size in files.items())


_held: dict[Path, float] = {}  # work directories of this process, and when each was pushed last


def hold(path: Path) -> None:
    """From now on `sync` pushes this folder."""
    _held[path] = time.monotonic()


def let_go(path: Path) -> None:
    """Pushes a held folder for the last time."""
    if _held.pop(path, None) is not None:
        push(path)


def sync(path: Path, every_s: float = 0.0) -> None:
    """Pushes the held folder that `path` lies in, unless that happened less than `every_s` seconds ago."""
    root = next((folder for folder in (path, *path.parents) if folder in _held), None) if _held else None
    if root is not None and time.monotonic() - _held[root] >= every_s:
        push(root)
        _held[root] = time.monotonic()


# ---- folders that never change, named by what made them: records, features


def finished(path: Path) -> bool:
    """Whether the store holds a published folder; False for a path that is only a path."""
    store = store_of(path)
    return store is not None and ((path / MARK).exists() or store.fs.exists(f"{store.key(path)}/{MARK}"))


def fetch(path: Path) -> bool:
    """Brings a published folder to this machine, once for all its processes. Returns whether it is here."""
    store = store_of(path)
    if store is None or not finished(path):
        return False
    if not (path / MARK).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.fetch")):
            if not (path / MARK).exists():
                if not _whole(store, store.key(path), store.listing(path)):
                    return False
                pull(path)
    return True


def published(path: Path) -> list[str]:
    """The names of the published folders in a folder."""
    store = store_of(path)
    found = store.listing(path) if store else {}
    return sorted(name[: -len(MARK) - 1] for name in found if name.endswith(f"/{MARK}") and name.count("/") == 1)


def publish(path: Path) -> None:
    """Brings a finished folder of this machine to the store, where it is there once all of it is."""
    if store_of(path) is not None and not (path / MARK).exists():
        known = _files(path)
        _mark(path)
        try:
            push(path)
        except BaseException:
            (path / MARK).unlink()  # it says here, too, that the store has it
            raise
        assert known.keys() | {MARK} == _synced(path).keys()

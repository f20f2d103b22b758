"""What a file is by its first bytes, before anything tries to read it."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from data_pipelines.scan import DataError

HEAD = 4096  # bytes that are looked at
UNPACKED = 2 << 30  # bytes that a packed file may hold
AGAIN = "download it again"
SAVE_AS = "save its points as ply, pcd, npy or csv"
UNPACK = "unpack it first"

# first bytes -> (what it is, what to do)
MAGIC: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": ("a git-lfs pointer, not the file itself", "run `git lfs pull` in its folder"),
    b"PK\x03\x04": ("a zip archive (zip, npz, xlsx)", "unpack it first; of arrays save the points alone with numpy.save, of "
                    "sheets as csv"),
    b"PK\x05\x06": ("an empty zip archive", AGAIN),
    b"\x1f\x8b": ("a gzip archive", UNPACK),
    b"BZh": ("a bzip2 archive", UNPACK),
    b"\xfd7zXZ\x00": ("an xz archive", UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7-zip archive", UNPACK),
    b"Rar!": ("a rar archive", UNPACK),
    b"%PDF": ("a PDF document", "give the scan itself"),
    b"{\\rtf": ("a formatted document (rtf)", "save it as plain text"),
    b"\x89PNG": ("a picture (PNG)", "give the scan itself"),
    b"\xff\xd8\xff": ("a picture (JPEG)", "give the scan itself"),
    b"GIF8": ("a picture (GIF)", "give the scan itself"),
    b"II*\x00": ("a TIFF picture", "give it its own ending, .tiff, in a data set of organised scans"),
    b"MM\x00*": ("a TIFF picture", "give it its own ending, .tiff, in a data set of organised scans"),
    b"RIFF": ("a picture, sound or film (RIFF)", "give the scan itself"),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save the sheet as csv"),
    b"Kaydara FBX": ("an FBX mesh, which is not read", SAVE_AS),
    b"# vtk DataFile": ("a VTK file, which is not read", SAVE_AS),
    b"\x89HDF": ("an HDF5 file, which is not read", SAVE_AS),
    b"MATLAB 5.0": ("a MATLAB file, which is not read", SAVE_AS),
    b"PAR1": ("a Parquet table, which is not read", SAVE_AS),
    b"SQLite format 3": ("a database (SQLite)", SAVE_AS),
    b"\x7fELF": ("a program (ELF)", "give the scan itself"),
    b"<<<<<<< ": ("a file with an unsolved git conflict", "solve it, or check the file out again"),
    b"ISO-10303-21": ("a CAD model (STEP)", SAVE_AS),
}
# of scans: first bytes -> the endings that belong to them
OWN = {b"\x93NUMPY": (".npy",), b"ply\n": (".ply",), b"ply\r": (".ply",), b"# .PCD": (".pcd",), b"LASF": (".las", ".laz"),
       b"ASTM-E57": (".e57",), b"glTF": (".glb",)}
# endings of formats known by name alone
OTHERS = {".ptx": "a Leica PTX scan", ".las": "a LAS scan", ".laz": "a LAZ scan", ".e57": "an E57 scan", ".stl": "an STL mesh",
          ".obj": "an OBJ mesh", ".off": "an OFF mesh", ".npz": "an archive of arrays", ".xlsx": "an Excel sheet"}


def what_else(head: bytes, kind: str) -> tuple[str, str] | None:
    """(what a file is, what to do) by its first bytes, where it can be no cloud or table of the ending `kind`; else None."""
    for start, (what, todo) in MAGIC.items():
        if head.startswith(start):
            return what, todo
    for start, endings in OWN.items():
        if head.startswith(start) and kind not in endings:
            return f"a {endings[0][1:].upper()} file by its content", f"rename it to end in {endings[0]}"
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if not head.strip(b"\0"):
        return "nothing but zero bytes", "copy it again"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.match(rb"<!doctype html|<html|<head|<body", start) or (start.startswith(b"<") and b"<html" in start):
        return "a web page, not the file itself", "open the link in a browser and download the file by hand"
    if start.startswith(b"<vtkfile"):
        return MAGIC[b"# vtk DataFile"]
    if re.match(rb"<\?xml|<[a-z!][^<>]*>", start):
        return "an XML file", AGAIN
    if start.startswith((b"{", b"[{", b"[[")) or re.match(rb"\[\s*(\"|\{|\[|-?\d)", start):
        return "a JSON file", SAVE_AS
    if kind != ".stl" and re.match(rb"solid\b[^\n]*\s+facet\s", start):
        return "an STL mesh, which is not read as a cloud", SAVE_AS
    return None


def contents(path: str | Path, head: bool = False, begins: bytes = b"") -> bytes:
    """The bytes of a file that may be a cloud or a table, unpacked where its name ends in `.gz`.

    Args:
      head: the first HEAD bytes alone, for those whose library reads the file itself.
      begins: what files of this format begin with, where that is known.

    Raises:
      DataError: no such file, a folder, unreadable, empty, or by its first bytes something else; the line says what.
    """
    path = Path(path)
    packed = path.suffix.lower() == ".gz"
    try:
        if path.is_dir():
            raise DataError(f"{path}: a folder, not a file; give the files in it")
        if not path.exists():
            raise DataError(f"{path}: no such file" + (" (a link to nothing)" if path.is_symlink() else ""))
        if not path.is_file():
            raise DataError(f"{path}: not a plain file; save it to disk first")
        with path.open("rb") as file:
            content = file.read(HEAD) if head else file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights and its disk") from error
    if not content:
        raise DataError(f"{path}: the file is empty; copy or export it again")
    if packed and content.startswith(b"\x1f\x8b"):
        content = _unpacked(content, path)
    other = what_else(content[:HEAD], Path(path.stem).suffix.lower() if packed else path.suffix.lower())
    if other:
        raise DataError(f"{path}: {other[0]}; {other[1]}")
    if not content.startswith(begins):
        raise DataError(f"{path}: no {path.suffix[1:].upper()} file by its content; export the scan again")
    return content


def _unpacked(content: bytes, path: Path) -> bytes:
    """What a gzip file packs, unless that is more than any scan has: a small file may unpack to any size."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(content, UNPACKED)
    except zlib.error as error:
        raise DataError(f"{path}: the packed file is damaged ({error}); copy it again") from error
    if unpacker.unconsumed_tail:
        raise DataError(f"{path}: more than {UNPACKED >> 30} GiB when unpacked; thin the scan out")
    if not unpacker.eof:
        raise DataError(f"{path}: truncated, the packed data do not come to an end; copy it again")
    return found


def said(error: Exception) -> str:
    """What the exception of a library says, in one short line."""
    return " ".join(str(error).split())[:100] or type(error).__name__

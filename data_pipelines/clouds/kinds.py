"""What a file is by its first bytes, before anything tries to read it."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.scan import DataError

HEAD = 4096  # bytes that are looked at
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
    b"LASF": ("a LAS or LAZ scan, which is not read", SAVE_AS),
    b"ASTM-E57": ("an E57 scan, which is not read", SAVE_AS),
    b"glTF": ("a glTF mesh, which is not read", SAVE_AS),
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
# of clouds: first bytes -> the ending that belongs to them
OWN = {b"\x93NUMPY": ".npy", b"ply\n": ".ply", b"ply\r": ".ply", b"# .PCD": ".pcd"}
# endings of formats known by name alone
OTHERS = {".ptx": "a Leica PTX scan", ".las": "a LAS scan", ".laz": "a LAZ scan", ".e57": "an E57 scan", ".stl": "an STL mesh",
          ".obj": "an OBJ mesh", ".off": "an OFF mesh", ".npz": "an archive of arrays", ".xlsx": "an Excel sheet"}


def what_else(head: bytes, kind: str) -> tuple[str, str] | None:
    """(what a file is, what to do) by its first bytes, where it can be no cloud or table of the ending `kind`; else None."""
    for start, (what, todo) in MAGIC.items():
        if head.startswith(start):
            return what, todo
    for start, ending in OWN.items():
        if head.startswith(start) and kind != ending:
            return f"a {ending[1:].upper()} file by its content", f"rename it to end in {ending}"
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
    if re.match(rb"solid\b[^\n]*\s+facet\s", start):
        return "an STL mesh, which is not read as a cloud", SAVE_AS
    return None


def contents(path: str | Path) -> bytes:
    """The bytes of a file that may be a cloud or a table.

    Raises:
      DataError: no such file, a folder, unreadable, empty, or by its first bytes something else; the line says what.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise DataError(f"{path}: a folder, not a file; give the files in it")
        if not path.exists():
            raise DataError(f"{path}: no such file" + (" (a link to nothing)" if path.is_symlink() else ""))
        if not path.is_file():
            raise DataError(f"{path}: not a plain file; save it to disk first")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights and its disk") from error
    if not content:
        raise DataError(f"{path}: the file is empty; copy or export it again")
    other = what_else(content[:HEAD], path.suffix.lower())
    if other:
        raise DataError(f"{path}: {other[0]}; {other[1]}")
    return content

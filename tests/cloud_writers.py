"""Cloud files of every kind as other programs write them, made byte by byte: what a reader has to cope with."""

import numpy as np

PCD_TYPES = {"f": "F", "i": "I", "u": "U"}
PLY_TYPES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float", "f8": "double"}


def pcd(columns, data="binary", extra=()):
    """Bytes of a PCD file. columns: [(name, array [S] or [S, count])], their types as the arrays'. extra: more header lines."""
    arrays = [np.asarray(values).reshape(len(values), -1) for _, values in columns]
    count = len(arrays[0])
    lines = ["# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", "FIELDS " + " ".join(name for name, _ in columns)]
    lines += ["SIZE " + " ".join(str(a.itemsize) for a in arrays), "TYPE " + " ".join(PCD_TYPES[a.dtype.kind] for a in arrays)]
    lines += ["COUNT " + " ".join(str(a.shape[1]) for a in arrays), f"WIDTH {count}", "HEIGHT 1", *extra]
    lines += ["VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {count}", f"DATA {data}"]
    head = "\n".join(lines).encode() + b"\n"
    if data == "ascii":
        rows = [" ".join(str(v) for a in arrays for v in a[i].tolist()) for i in range(count)]
        return head + "\n".join(rows).encode() + b"\n"
    if data == "binary":
        return head + b"".join(a[i].tobytes() for i in range(count) for a in arrays)
    body = b"".join(a.tobytes() for a in arrays)
    packed = lzf(body)
    return head + len(packed).to_bytes(4, "little") + len(body).to_bytes(4, "little") + packed


def lzf(body):
    """LZF with copies of what came right before, overlapping ones too, and runs of plain bytes."""
    out, at = bytearray(), 0
    while at < len(body):
        found = next((back for back in (1, 4, 8, 24) if at >= back and body[at : at + 3] == body[at - back : at - back + 3]
                      and at + 3 <= len(body)), None)
        if found:
            length = 3
            while length < 264 and at + length < len(body) and body[at + length] == body[at + length - found]:
                length += 1
            high = (found - 1) >> 8
            out += bytes([(length - 2) << 5 | high] if length < 9 else [7 << 5 | high, length - 9]) + bytes([(found - 1) & 255])
            at += length
        else:
            plain = body[at : at + 2]
            out += bytes([len(plain) - 1]) + plain
            at += len(plain)
    return bytes(out)


def ply(columns, form="binary_little_endian", before=b"", before_lines=(), after_lines=(), after=b"", lists=None, end="\n"):
    """Bytes of a PLY file. lists: for every vertex a list of int32, written as a last property."""
    order = ">" if "big" in form else "<"
    arrays = [np.asarray(values) for _, values in columns]
    lines = ["ply", f"format {form} 1.0", "comment made by hand", "obj_info num_cols 1", *before_lines]
    lines += [f"element vertex {len(arrays[0])}"]
    lines += [f"property {PLY_TYPES[a.dtype.str[1:]]} {name}" for (name, _), a in zip(columns, arrays)]
    lines += ["property list uchar int view"] if lists else []
    head = end.join([*lines, *after_lines, "end_header", ""]).encode()
    rows = []
    for i in range(len(arrays[0])):
        extra = lists[i] if lists else []
        if form == "ascii":
            words = [str(a[i]) for a in arrays] + ([str(len(extra)), *map(str, extra)] if lists else [])
            rows.append(" ".join(words).encode() + end.encode())
        else:
            rows.append(b"".join(np.array(a[i], order + a.dtype.str[1:]).tobytes() for a in arrays))
            if lists:
                rows[-1] += bytes([len(extra)]) + np.array(extra, order + "i4").tobytes()
    return head + before + b"".join(rows) + after

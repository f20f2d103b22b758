"""A tiny data set in Real3D-AD's layout for tests: ellipsoids with a bump, written by this file alone."""

from pathlib import Path

import numpy as np


def ellipsoid(points: int, seed: int, bump: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Points [S, 3] on an ellipsoid in millimetres, and which of them belong to a bump."""
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(points, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mask = (unit @ [0.6, 0.0, -0.8] > 0.93) if bump else np.zeros(points, bool)
    return (unit * (1 + 0.15 * mask[:, None])) * [12.0, 9.0, 7.0] + [100.0, -40.0, 5.0], mask


def write_pcd(path: Path, xyz: np.ndarray, data: str = "binary") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = (f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {len(xyz)}\nHEIGHT 1\n"
            f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(xyz)}\nDATA {data}\n")
    body = "".join(f"{x} {y} {z}\n" for x, y, z in xyz).encode() if data == "ascii" else xyz.astype("<f4").tobytes()
    path.write_bytes(head.encode() + body)


def write_set(root: Path, categories=("ball", "egg"), points: int = 700, good: int = 2, defective: int = 2) -> Path:
    for c, category in enumerate(categories):
        write_pcd(root / category / "train" / "1_template.pcd", ellipsoid(points, 900 + c)[0])
        for i in range(good + defective):
            bump = i >= good
            xyz, mask = ellipsoid(points, 100 * c + i, bump)
            stem = f"{i + 8}_{'bulge' if bump else 'good'}"  # 8, 9, 10: not in the order of the alphabet
            write_pcd(root / category / "test" / f"{stem}.pcd", xyz)
            if bump:
                (root / category / "gt").mkdir(exist_ok=True)
                np.savetxt(root / category / "gt" / f"{stem}.txt", np.column_stack([xyz, mask]), fmt="%.4f %.4f %.4f %d")
    return root

"""What is missing is said in one line each, with an exit status."""

import hashlib

from experiments.doctor import main


def test_devices_weights_and_data(tmp_path, capsys):
    (tmp_path / "own.bin").write_bytes(b"x")
    assert main(["--weights", str(tmp_path / "own.bin")]) == 0
    out = capsys.readouterr().out
    assert "device: cpu" in out and "jax 0." in out and f"SHA-256 {hashlib.sha256(b'x').hexdigest()}" in out
    (tmp_path / "ViT-L-14-336px.pt").write_bytes(b"torn")
    (tmp_path / "seahorse" / "test").mkdir(parents=True)
    (tmp_path / "seahorse" / "test" / "1_good.pcd").write_bytes(b"")
    files = [str(tmp_path / name) for name in ("ViT-L-14-336px.pt", "none.pt")]
    assert main(["--weights", *files, "--data", f"real3d={tmp_path}", "real4d=x"]) == 1
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert "download the file again" in lines[0] and "none.pt: missing" in lines[1]
    assert "1 test scans of 1 categories" in lines[2] and "missing of the published protocol:" in lines[2]
    assert "did you mean 'real3d'" in lines[3]

"""From scans to tables with everything on an object store: a real S3 server, two machines, one of them lost on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from experiments import command_line, run, tables
from tests.experiments.test_sweep import write_sweep
from tests.object_store import BUCKET, s3_server

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--config.data.name=folder", "--config.data.train_category=bottle", "--config.data.points=1024", "--config.data.views=3",
    "--config.data.image_size=160", "--config.data.cloud_points=64", "--config.pointnet2.centroids=32,16,8,4",
    "--config.stage1.epochs=1", "--config.stage2.epochs=4", "--config.eval.batch_size=2", "--config.eval.pictures=2",
    "--config.compare=", "--config.save_every_s=0", "--config.mesh.cpu_devices=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("here")) as environment:
        yield environment


@pytest.mark.parametrize("arguments, said", [
    (["--workdir", "s3://nowhere/run"], "s3://nowhere/run cannot be written: no such bucket"),
    (["--workdir", "ftp://host/run"], "no storage of the kind ftp://"),
    (["--config.cache=s3://nowhere/cache", "--workdir", "DIR/w"], "s3://nowhere/cache cannot be written: no such bucket"),
    (["--config.data.name=folder", "--config.data.root=s3://runs/scans", "--workdir", "DIR/w"], "scans are read from a folder"),
])  # fmt: skip
def test_a_wrong_place_is_one_line_before_any_work(server, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("DIR", str(tmp_path)) for word in arguments]
    assert run.main(["--config", "stage2.py", *given]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
    assert not list(tmp_path.rglob("*.json")) and not (tmp_path / "s3:").exists()


def test_tables_of_a_bucket(server, tmp_path):
    """Runs on the store; the table beside them, and named by its URL."""
    results = {"dataset": "folder", "trained_on": "folder", "train_category": "a", "preset": "", "variant": "paper",
               "method": "gsclip", "seed": 0, "categories": {},
               "mean": dict.fromkeys(("o_auroc", "o_ap", "p_auroc", "p_pro"), 0.5)}  # fmt: skip
    client = boto3.client("s3")
    for name in ("grid/b-s0", "grid/a-s0"):
        client.put_object(Bucket=BUCKET, Key=f"{name}/results.json", Body=json.dumps(results))
    client.put_object(Bucket=BUCKET, Key="grid/rows.json", Body=json.dumps(["b-s0", "a-s0"]))
    assert tables.main([f"s3://{BUCKET}/grid"]) == 0
    text = client.get_object(Bucket=BUCKET, Key="grid/table.md")["Body"].read().decode()
    assert text.index("| b |") < text.index("| a |")


class Machine:
    """A machine of its own: other local copies, the same scans and store."""

    def __init__(self, name: str, folder: Path, server: dict):
        self.environment = {**os.environ, **server, "GSCLIP_MIRROR": str(folder / name), "PYTHONPATH": str(ROOT)}
        self.mirror = folder / name

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run([sys.executable, "-m", *words], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0 or not check, done.stdout[-2000:] + done.stderr[-3000:]
        return done

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", *words], env=self.environment, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)  # fmt: skip


def keys(below: str) -> list[str]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=below)
    return [found["Key"][len(below) :] for page in pages for found in page.get("Contents", ())]


def content(key: str):
    return json.loads(boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read())


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A few solids as a folder of scans, of two categories."""
    config, _ = command_line.parse([
        "--config", "stage2.py", "--config.data.categories=vase", "--config.data.synthetic.train_good=4",
        "--config.data.synthetic.train_defective=4", "--config.data.synthetic.good=3", "--config.data.synthetic.defective=3",
        "--config.data.synthetic.scan_points=1500"])  # fmt: skip
    from experiments.data import write_synthetic

    root = tmp_path_factory.mktemp("scans")
    linked, _ = write_synthetic(config, root / "cache", 1, lambda line: None)
    shutil.copytree(linked, root / "scans")
    return root / "scans"


@pytest.mark.slow
def test_prepared_trained_lost_gone_on_with_elsewhere_evaluated_and_tabled(server, scans, tmp_path):
    """prepare on one machine; a run killed (-9) while stage 2 trains; the same command on another machine goes on from the
    checkpoint of the store; eval.py and tables on a third. The numbers are those of a run on local disks."""
    one, two, three = (Machine(name, tmp_path, server) for name in ("one", "two", "three"))
    cache, workdir = f"s3://{BUCKET}/cache", f"s3://{BUCKET}/run"
    settings = [*SMALL, "--config.data.name=real3d", f"--config.data.root={scans}"]
    train = ["experiments.run", "--config", "stage2.py", *settings]
    one(*train, "--workdir", str(tmp_path / "local"), f"--config.cache={tmp_path / 'cache'}")

    config, _ = command_line.parse(["--config", "stage2.py", *settings])
    data = config.data
    options = ["--points", str(data.points), "--views", str(data.views), "--image-size", "160", "--cloud-points", "64",
               "--cameras", data.cameras, "--window", str(data.window), "--point-size", str(data.point_size), "--back-off", "yes",
               "--zoom", str(data.zoom), "--cavity", str(data.cavity), "--depth-relief", str(data.depth_relief), "--fill-gaps"]
    said = one("data_pipelines.prepare", "--data", "real3d", "--root", str(scans), "--out", cache, *options).stdout
    assert f"verified: {cache}/real3d-" in said and str(tmp_path / "one") not in said
    assert sum(key.endswith("/commit_success.txt") for key in keys("cache/")) == 1

    arguments = [*train, "--workdir", workdir, f"--config.cache={cache}"]
    lost = one.start(*arguments)
    while not (saved := [key for key in keys("run/stage2/checkpoints/") if key.endswith("commit_success.txt")]):
        assert lost.poll() is None, lost.communicate()[0]
        time.sleep(0.1)
    lost.send_signal(signal.SIGKILL)
    lost.wait()
    assert "results.json" not in keys("run/") and int(saved[0].split("/")[0]) < 8
    assert "rendering" not in lost.communicate()[0]  # the records were found
    shutil.rmtree(one.mirror)

    two.environment["HOSTNAME"] = "two"
    said = two(*arguments).stdout
    assert f"results: {workdir}/results.json" in said and str(tmp_path / "two") not in said
    assert "stage1:" not in said and "encoding frozen parts (render_tokens" not in said  # checkpoints and features came along
    local = json.loads((tmp_path / "local" / "results.json").read_text())
    found = content("run/results.json")
    assert found["categories"] == local["categories"] and found["mean"] == local["mean"]
    names = set(keys("run/"))
    assert {"config.json", "metrics.jsonl", "scores.csv", "report.html", "model/params.safetensors", "model/config.json"} <= names
    assert not [name for name in names if ".part" in name or "tmp" in name]
    assert sum(name.startswith("eval/") and name.endswith(".npz") for name in names) == 6

    again = two(*arguments)
    assert "rendering" not in again.stdout and found == content("run/results.json")
    elsewhere = ["--config.target.name=real3d", f"--config.target.root={scans}", "--config.target.categories=vase"]
    three("experiments.run", "--config", "eval.py", "--workdir", workdir, f"--config.cache={cache}", *elsewhere)
    assert any(name.startswith("evaluations/") for name in keys("run/"))
    said = three("experiments.tables", workdir).stdout
    assert f"wrote {workdir}/table.md" in said and "table.md" in keys("run/")
    out = tmp_path / "scored"
    scan = next((scans / "vase" / "test").glob("*.pcd"))
    three("experiments.predict", str(scan), "--workdir", workdir, "--out", str(out))
    (row,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert row["name"] == scan.stem and 0 < row["score"] < 1


@pytest.mark.slow
def test_two_machines_share_a_grid_on_the_store_and_one_is_lost(server, scans, tmp_path):
    """experiments.sweep --pod with rows, leases and cache on the store: a machine is lost while its row trains (-9, and its local
    copies). The other takes the row over; the table is that of one worker on local disks."""
    rows = write_sweep(tmp_path, '{"a": {}, "b": {"model.top_k": 3}, "c": {"model.top_k": 4}}')
    settings = [*SMALL, "--config.data.name=real3d", f"--config.data.root={scans}", "--seeds", "0"]
    command = ["experiments.sweep", "--config", rows, *settings]
    machines = {name: Machine(name, tmp_path, server) for name in ("alone", "one", "two")}
    machines["alone"](*command, "--workdir", str(tmp_path / "grid"), f"--config.cache={tmp_path / 'cache'}")
    machines["alone"]("experiments.tables", str(tmp_path / "grid"))

    grid = ["--workdir", f"s3://{BUCKET}/grid-pod", f"--config.cache=s3://{BUCKET}/cache-pod", "--pod"]
    workers = {name: machines[name].start(*command, *grid, "--worker", number) for name, number in (("one", "0"), ("two", "1"))}
    while not (saved := [key for key in keys("grid-pod/") if "/stage2/checkpoints/" in key and key.endswith("success.txt")]):
        assert all(worker.poll() is None for worker in workers.values())
        time.sleep(0.1)
    row = saved[0].split("/")[0]
    child = content(f"grid-pod/.pod/leases/{row}/{keys(f'grid-pod/.pod/leases/{row}/')[-1]}")["pid"]
    parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    (lost,) = [name for name, worker in workers.items() if worker.pid == parent]
    workers[lost].kill()
    os.kill(child, signal.SIGKILL)
    shutil.rmtree(machines[lost].mirror)
    assert f"{row}/results.json" not in keys("grid-pod/")

    (left,) = workers.keys() - {lost}
    said = workers[left].communicate()[0]
    assert workers[left].returncode == 0 and "all 3 rows are complete" in said, said[-3000:]
    shutil.rmtree(machines[lost].mirror, ignore_errors=True)  # a machine that has nothing yet
    machines[lost]("experiments.tables", f"s3://{BUCKET}/grid-pod")
    table = boto3.client("s3").get_object(Bucket=BUCKET, Key="grid-pod/table.md")["Body"].read().decode()
    assert table == (tmp_path / "grid" / "table.md").read_text()
    for path in (tmp_path / "grid").glob("*/results.json"):
        found, wanted = content(f"grid-pod/{path.parent.name}/results.json"), json.loads(path.read_text())
        assert found["categories"] == wanted["categories"], path.parent.name

"""Exported models: the same scores by every format, nothing of the training imported, calibrations, hub, hostile files."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

import gsclip_jax
from data_pipelines.clouds.loading import load_scan
from data_pipelines.records.objects import Recipe
from experiments.export import main as export
from gsclip_jax.inspection import command, hub, stablehlo
from gsclip_jax.inspection.formats import saved_model
from gsclip_jax.inspection.program import program_of
from tests import tiny
from tests.hub_server import hub as hub_server
from tests.parts import compiled_by

EARLIER = Path(__file__).parents[1] / "data" / "earlier" / "model"
SMALL = {"points": 96, "image_size": 40, "views": 2, "cloud_points": 32, "neighbours": 8, "window": 64, "rasteriser": "numpy"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of PointAD on the embedded CLIP, its exports `params` and `stablehlo`, and a scan."""
    root = tmp_path_factory.mktemp("export")
    shutil.copytree(EARLIER, root / "run" / "model")
    about = json.loads((root / "run" / "model" / "config.json").read_text())
    about["config"]["data"].update(SMALL)
    (root / "run" / "model" / "config.json").write_text(json.dumps(about))
    for kind in ("params", "stablehlo"):
        assert export(["--workdir", str(root / "run"), "--out", str(root / kind), "--format", kind]) == 0
    xyz = np.random.default_rng(0).standard_normal((300, 3))
    np.savetxt(root / "part.xyz", xyz * [3, 1, 1] / np.linalg.norm(xyz, axis=1, keepdims=True))
    return root


def copied(made, tmp_path, of="stablehlo", **changes):
    """An exported model with another configuration."""
    shutil.copytree(made / of, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return tmp_path / "model"


def refused(model) -> str:
    with pytest.raises(ValueError) as error:
        saved_model(model)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    return str(error.value)


def scored(model, part, wanted, absent):
    """Inspects the part with the model in a new process, which imports none of the absent, and compares."""
    program = """
import sys
from gsclip_jax.inspection.command import main
assert main(sys.argv[2:]) == 0
bad = [name for name in sys.modules if name.split(".")[0] in sys.argv[1].split(",") or name.startswith("gsclip_jax.training")]
assert not bad, bad
"""
    out = model.with_name(f"out-{model.name}")
    command_line = [absent, str(part), "--model", str(model), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", program, *command_line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_scan(out / "parts" / "part.ply").attributes["score"]
    np.testing.assert_allclose(found, wanted.points, rtol=0, atol=1e-5)
    assert json.loads((out / "parts" / "part.json").read_text())["score"] == pytest.approx(wanted.score, abs=1e-5)


def test_every_format_scores_as_the_run_and_imports_nothing_of_the_training(made):
    points = np.loadtxt(made / "part.xyz")
    wanted = gsclip_jax.load(made / "run")(points)
    assert np.ptp(wanted.points) > 1e-3
    absent = {"params": "orbax,experiments", "stablehlo": "optax,orbax,flax,experiments,transformers,ml_collections"}
    for kind, names in absent.items():
        scored(made / kind, made / "part.xyz", wanted, names)
    assert {saved_model(made / kind).digest for kind in ("run", *absent)} == {saved_model(made / "run").digest}


@pytest.mark.slow
def test_a_program_is_compiled_while_the_first_scan_is_drawn(made):
    detector, points = gsclip_jax.load(made / "stablehlo"), np.loadtxt(made / "part.xyz")
    prepared = []
    assert compiled_by(lambda: [prepared.append(detector.prepare(points)), detector._ahead.wait()]) >= 1
    assert compiled_by(lambda: detector.finish(prepared[0])) == 0


def small_gsclip():
    """A GS-CLIP whose LoRA says something, its parameters, and its program."""
    method = tiny.method(surface_share=0.0)
    params, stats = tiny.params(method)
    rng = np.random.default_rng(0)
    params["lora"] = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), params["lora"])
    recipe = Recipe(points=64, image_size=32, views=3, cameras="ring", window=32, point_size=1.0, cloud_points=32, neighbours=4,
                    sample_seed=0)  # fmt: skip
    return method, params, stats, program_of(method, params, stats, recipe)


def test_weights_are_there_once_with_lora_merged():
    method, params, _, program = small_gsclip()
    tower = params["clip"]["visual"]
    merged = sum(tower["blocks"]["mlp"][name].size for name in ("fc_kernel", "proj_kernel"))
    found = {name: array.size for name, array in program.weights.items() if "visual" in name or "depth_tower" in name}
    assert sum(found.values()) == sum(x.size for x in jax.tree.leaves(tower)) + merged
    assert not any("lora" in name for name in program.weights)
    assert set(program.inputs) == {"render", "depth", "cloud", "pixel", "visible", "xyz", "neighbours", "valid", "organised"}
    images = np.random.default_rng(1).standard_normal((1, 1, 32, 32, 3)).astype(np.float32)
    tokens = jax.jit(method.depth_tokens)
    wanted, found = tokens(params, images), tokens(method.folded(params), images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
    without = tokens({**params, "lora": jax.tree.map(np.zeros_like, params["lora"])}, images)
    assert np.abs(without - wanted).max() > 1e-2
    half = tiny.method(clip=dataclasses.replace(tiny.CLIP, dtype="bfloat16"))
    assert half.folded(params) is params  # added to weights that are then rounded, it would be rounded, too


@pytest.mark.slow
def test_any_number_of_objects_goes_into_a_program():
    method, params, stats, program = small_gsclip()
    exported = jax.export.deserialize(bytearray(stablehlo.written(program)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    batch = tiny.batch(3)
    wanted = jax.device_get(jax.jit(method.predict)(params, stats, batch))
    for count in (3, 1):
        found = exported.call(program.weights, {name: batch[name][:count] for name in program.inputs})
        for name, array in found.items():
            np.testing.assert_allclose(array, getattr(wanted, name)[:count], rtol=0, atol=1e-5, err_msg=name)


def test_a_calibration_lies_inside_and_belongs_to_one_model(made, tmp_path, capsys):
    known = {"kind": "gsclip calibration", "format": 1, "model": saved_model(made / "run").digest, "settings": {}, "rate": 0.1,
             "scores": [0.2] * 20, "highest": [0.3] * 20, "middle": 0.1, "dented": [0.4] * 20}  # fmt: skip
    (tmp_path / "good.json").write_text(json.dumps(known))
    given = ["--workdir", str(made / "run"), "--format", "stablehlo", "--calibration"]
    assert export([*given, str(tmp_path / "good.json"), "--out", str(tmp_path / "model")]) == 0
    scan = [str(made / "part.xyz"), "--model", str(tmp_path / "model"), "--out"]
    assert command.main([*scan, str(tmp_path / "judged")]) == 0
    assert json.loads((tmp_path / "judged" / "parts" / "part.json").read_text())["verdict"]["kind"] in ("sound", "defective")
    assert command.main([*scan, str(tmp_path / "ranked"), "--calibration", "none"]) == 0
    assert json.loads((tmp_path / "ranked" / "parts" / "part.json").read_text())["verdict"] is None
    (tmp_path / "other.json").write_text(json.dumps(known | {"model": "0" * 64}))
    capsys.readouterr()
    assert export([*given, str(tmp_path / "other.json"), "--out", str(tmp_path / "model")]) == 1
    for kind in ("params", "stablehlo"):
        out = ["--model", str(made / kind), "--out", str(tmp_path / f"o-{kind}"), "--calibration", str(tmp_path / "other.json")]
        assert command.main([str(made / "part.xyz"), *out]) == 1
    assert capsys.readouterr().err.count("made with model 000000000000, this is") == 3
    assert saved_model(tmp_path / "model").calibration  # the one before is whole


def test_a_model_in_onnx_scores_as_the_run(made, tmp_path, capsys):
    pytest.importorskip("onnx", reason="ONNX is optional: requirements-onnx.txt")
    pytest.importorskip("onnxruntime", reason="ONNX is optional: requirements-onnx.txt")
    model, points = tmp_path / "model", np.loadtxt(made / "part.xyz")
    assert export(["--workdir", str(made / "params"), "--out", str(model), "--format", "onnx"]) == 0
    said = capsys.readouterr()
    assert "as onnx, " in said.out and not said.err  # a note on the surface stream, which PointAD has not
    assert {path.name for path in model.iterdir()} == {"README.md", "config.json", "model.onnx"}
    wanted = gsclip_jax.load(made / "run")(points)
    scored(model, made / "part.xyz", wanted, "optax,orbax,flax,experiments,transformers,ml_collections")
    assert saved_model(model).digest == saved_model(made / "run").digest
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | {"sha256": "0"}))
    assert "model.onnx: not the program that config.json vouches for" in refused(model)


def test_what_is_no_exported_model_stays_as_it_is(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert export(["--workdir", str(made / "run"), "--out", str(tmp_path)]) == 1
    assert (tmp_path / "README.md").read_text() == "mine" and "holds something else" in capsys.readouterr().err
    shutil.copytree(made / "stablehlo", tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnx", None)  # where the package is not installed
    for refusal in (["--format", "onnx"], ["--format", "stablehlo", "--half"]):
        assert export(["--workdir", str(made / "run"), "--out", str(tmp_path / "model"), *refusal]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert export(["--workdir", str(made / "run"), "--out", str(tmp_path / "model"), "--half"]) == 0  # another format
    assert not (tmp_path / "model" / "model.stablehlo").exists() and set(tmp_path.glob("model/.*")) == set()
    assert saved_model(tmp_path / "model").digest == saved_model(made / "run").digest  # half precision already


@pytest.mark.parametrize("changes, said", [
    ({"format": 2}, "format 2 is of a later gsclip_jax, this one reads up to 1; upgrade it"), ({"format": 0}, "export it again"),
    ({"format": "1"}, "export it again"), ({"program": "../x"}, "a program of kind ../x, known are stablehlo"),
    ({"digest": "x"}, "no digest"), ({"sha256": "0"}, "model.stablehlo: not the program that config.json vouches for"),
    ({"recipe": 5}, "it is no object"), ({"recipe": {"points": "many"}}, "recipe cannot be used"),
    ({"inputs": {"xyz": [[10**12, 3], "float32"]}}, "inputs are not what its recipe makes"), ({"inputs": []}, "inputs are not"),
    ({"kind": "gsclip other"}, "holds no trained model"), ({"weights": {}}, "config.json"),
    ({"weights": {"format": "gsclip_jax-9", "sha256": "0", "dtype": "smallest"}}, "upgrade gsclip_jax"),
])  # fmt: skip
def test_other_configurations_are_one_line(made, tmp_path, changes, said):
    assert said in refused(copied(made, tmp_path, **changes))


def test_sizes_that_no_model_has_are_refused_before_anything_is_made(made, tmp_path):
    recipe = json.loads((made / "stablehlo" / "config.json").read_text())["recipe"]
    assert "beyond any model's" in refused(copied(made, tmp_path, recipe=recipe | {"points": 10**12}))


@pytest.mark.parametrize("kind, name", [
    ("stablehlo", "model.stablehlo"), ("stablehlo", "params.safetensors"), ("stablehlo", "config.json"),
    ("params", "params.safetensors"), ("params", "config.json"),
])  # fmt: skip
def test_damaged_files_are_one_line(made, tmp_path, kind, name):
    model = copied(made, tmp_path, kind)
    data = (model / name).read_bytes()
    (model / name).write_bytes(data[: len(data) // 2])
    assert name in refused(model) or "holds no trained model" in refused(model)
    (model / name).unlink()
    assert refused(model)


def test_programs_that_vouch_for_themselves_are_read_with_care(made, tmp_path):
    """With the hash made to fit: cut, filled with noise, of other weights, and one that calls back into Python."""
    data = (made / "stablehlo" / "model.stablehlo").read_bytes()
    rng, seen = np.random.default_rng(0), set()
    for number in range(12):
        bad = bytearray(data)
        at = rng.integers(0, len(bad), 200)
        for place in at:
            bad[place] = rng.integers(256)
        bad = bytes(bad) if number % 2 else bytes(bad[: at[0]])
        seen.add(_with_program(made, tmp_path / str(number), bad))
    assert any("not a program" in line for line in seen)

    specs = {"xyz": jax.ShapeDtypeStruct((1, 96, 3), "float32")}
    other = jax.export.export(jax.jit(lambda weights, batch: batch["xyz"].sum(2)), platforms=["cpu"])({}, specs).serialize()
    assert "does not take its weights" in _with_program(made, tmp_path / "other", other)

    def calls(weights, batch):
        return jax.ffi.ffi_call("evil", jax.ShapeDtypeStruct((1, 96), "float32"))(batch["xyz"])

    allowed = [jax.export.DisabledSafetyCheck.custom_call("evil")]
    hostile = jax.export.export(jax.jit(calls), disabled_checks=allowed, platforms=["cpu"])({}, specs).serialize()
    assert "calls evil, which no exported model does" in _with_program(made, tmp_path / "evil", hostile)


def _with_program(made, folder, data) -> str:
    model = copied(made, folder, sha256=hashlib.sha256(data).hexdigest())
    (model / "model.stablehlo").write_bytes(data)
    return refused(model)


def test_the_hub_both_ways(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with hub_server(monkeypatch, tmp_path / "cache") as repositories:
        given = ["--workdir", str(made / "run"), "--out", str(tmp_path / "model"), "--push", "tester/vases", "--format"]
        assert export([*given, "params"]) == 0 and "pushed: " in capsys.readouterr().out
        repositories["tester/vases"]["../../evil.json"] = repositories["tester/vases"]["setup.py"] = b"{}"
        assert export([*given, "stablehlo"]) == 0
        there = repositories["tester/vases"]
        assert set(there) == {"config.json", "README.md", "model.stablehlo", "params.safetensors", "../../evil.json", "setup.py"}
        front = yaml.safe_load(there["README.md"].decode().split("---\n")[1])
        assert front["library_name"] == "gsclip_jax" and "anomaly-detection" in front["tags"]
        points = np.loadtxt(made / "part.xyz")
        found, wanted = gsclip_jax.load("tester/vases")(points), gsclip_jax.load(made / "run")(points)
        np.testing.assert_allclose(found.points, wanted.points, rtol=0, atol=1e-5)
        names = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
        assert names == {"config.json", "README.md", "model.stablehlo", "params.safetensors"}
        assert "RepositoryNotFound" in refused("tester/other") and "no folder here" in refused("tester/other")
        repositories["tester/empty"] = {"README.md": b"nothing"}
        assert "no model that gsclip export wrote" in refused("tester/empty")
        monkeypatch.setenv("HF_TOKEN", "wrong")
        assert export([*given, "params"]) == 1 and "error: --push tester/vases: " in capsys.readouterr().err
    offline = "import gsclip_jax, sys; print(gsclip_jax.load('tester/vases').model.digest)"
    # The server is gone, the cache is not.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", offline], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == saved_model(made / "run").digest, done.stderr[-1000:]


def test_the_card_is_yaml_whatever_the_names_hold():
    text = hub.card({"method": "x\n---\nlicense: evil", "category": "`a`", "data": "<b>", "format": "params", "clip": "a\nb",
                     "digest": "0" * 64, "recipe": {"points": 3}}, {"config.json": 10})  # fmt: skip
    front = yaml.safe_load(text.split("---\n")[1])
    assert set(front) == {"library_name", "tags"} and text.count("\n---\n") == 1


def test_weights_in_half_where_that_loses_nothing(made):
    stored = safetensors.numpy.load_file(made / "stablehlo" / "params.safetensors")
    assert {array.dtype.name for name, array in stored.items() if "clip" in name} == {"float16"}

"""The comparison with recorded arrays: that it passes, and that nothing wrong can pass. The whole run is marked slow."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from gsclip_jax.parity import recording as recording_module
from gsclip_jax.parity import weights
from gsclip_jax.parity.__main__ import main
from gsclip_jax.parity.check import Found, _row, check
from gsclip_jax.parity.compare import judge, kept_part
from gsclip_jax.parity.recording import Model, ParityError, Recording, split_name

BY_DESIGN = {"p/filled", "p/left", "j/points_hidden"}


@pytest.fixture
def part(shared_reference, tmp_path):
    """part('p') -> a directory that records nothing but these items, with files that may be changed."""

    def make(*items: str):
        for name in [f"{item}.npz" for item in items] + ["params_small.json", "weights_check.json"]:
            shutil.copyfile(shared_reference / name, tmp_path / name)
        manifest = json.loads((shared_reference / "manifest.json").read_text())
        manifest["arrays"] = {name: a for name, a in manifest["arrays"].items() if name[0] in items}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return tmp_path

    return make


def change_manifest(folder, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["arrays"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_arrays(folder, file, **changes) -> None:
    with np.load(folder / file) as found:
        arrays = dict(found)
    np.savez(folder / file, **(arrays | changes))


def run(folder, *arguments) -> tuple[int, dict]:
    """(exit status, rows by name) of the command."""
    out = folder / "out.json"
    status = main([str(folder), "--json", str(out), *arguments])
    return status, {row["name"]: row for row in json.loads(out.read_text())["arrays"]} if out.exists() else {}


# ---- it passes


@pytest.mark.parametrize("items", ["h,i,j,p"])
def test_quick_items_pass(shared_reference, tmp_path, capsys, items):
    out = tmp_path / "rows.json"
    assert main([str(shared_reference), "--only", items, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["arrays"]
    manifest = json.loads((shared_reference / "manifest.json").read_text())["arrays"]
    wanted = [n for n in manifest if n[0] in items.split(",") and not n.partition("/")[2].startswith("in_")]
    assert sorted(row["name"] for row in rows) == sorted(wanted)
    assert {row["name"] for row in rows if "by_design" in row} == BY_DESIGN
    for row in rows:
        bounds = manifest[row["name"]]
        assert row["ok"]
        assert (row["allowed_abs"], row["allowed_rms"]) == (bounds.get("accept_atol", 0), bounds.get("accept_rms", 0))
        assert row["max_abs"] <= row["allowed_abs"] and row["rms"] <= row["allowed_rms"]
    printed = capsys.readouterr().out
    assert f"{len(wanted)} arrays, {len(wanted)} ok" in printed and "h/seq_fused_x3" in printed


@pytest.mark.slow
def test_every_recorded_array_passes(shared_reference, tmp_path):
    out = tmp_path / "rows.json"
    assert main([str(shared_reference), "--json", str(out)]) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["arrays"]}
    names = json.loads((shared_reference / "manifest.json").read_text())["arrays"]
    assert set(rows) == {name for name in names if not name.partition("/")[2].startswith("in_")}
    assert {name for name, row in rows.items() if "by_design" in row} == BY_DESIGN


def test_weights_are_the_recorded_ones(shared_reference):
    names = json.loads((shared_reference / "params_small.json").read_text())
    recorded = json.loads((shared_reference / "weights_check.json").read_text())
    for kind, fingerprints in recorded.items():
        if kind.startswith("small"):
            seed = int(kind.split()[-1])
            for name, fingerprint in fingerprints.items():
                assert weights.agrees(weights.weight(name, names[name], seed), fingerprint), (kind, name)
    name = "visual.ln_pre.weight"
    other = weights.weight(name, names[name], 1)
    assert not weights.agrees(other, recorded["small seed 0"][name])
    assert not weights.agrees(other[::-1], recorded["small seed 1"].get(name, [0, 1, 0, 0]))


# ---- nothing wrong passes


def test_a_miss_fails(part, capsys):
    folder = part("p")
    with np.load(folder / "p.npz") as found:
        moved = found["normalised"].copy()
    moved[3, 1] += 1e-5  # the bound is 2e-6
    change_arrays(folder, "p.npz", normalised=moved)
    status, rows = run(folder, "--only", "p")
    assert status == 1 and not rows["p/normalised"]["ok"] and rows["p/filled"]["ok"]
    assert "1 missed: p/normalised" in capsys.readouterr().out


def test_an_array_that_nothing_answers_for_fails(part):
    folder = part("p")
    change_arrays(folder, "p.npz", news=np.zeros(3, np.float32))
    status, rows = run(folder, "--only", "p")
    assert status == 1 and rows["p.npz:news"]["note"] == "not in the manifest"

    about = {"file": "p.npz", "key": "news", "config": "SMALL", "weight_seed": 0, "shape": [3], "dtype": "float32", "what": "?",
             "inputs": "stored", "accept_atol": 1.0, "accept_rms": 1.0}  # fmt: skip
    for name in ("p/news", "7/news", "news"):  # of a known item, of an unknown one, of none
        change_manifest(folder, lambda arrays, name=name: arrays.update({name: about}))
        status, rows = run(folder, "--only", "p")
        assert status == 1 and not rows[name]["ok"] and rows[name]["note"] == "not checked"
        change_manifest(folder, lambda arrays, name=name: arrays.pop(name))


def test_a_perturbed_weight_fails(part, monkeypatch, capsys):
    folder = part("h")
    plain = recording_module.weight

    def perturbed(name, shape, seed):
        return plain(name, shape, seed) + np.float32(1e-3 if name == "fusion.final_proj.bias" else 0)

    monkeypatch.setattr(recording_module, "weight", perturbed)
    status, rows = run(folder, "--only", "h")
    assert status == 1 and not rows  # told before anything is compared
    assert "weight fusion.final_proj.bias of SMALL (seed 0)" in capsys.readouterr().err
    (folder / "weights_check.json").unlink()
    status, rows = run(folder, "--only", "h")
    assert status == 1
    assert not rows["h/fused"]["ok"] and not rows["h/seq_fused"]["ok"] and rows["h/seq_o1"]["ok"]
    assert rows["h/fused"]["max_abs"] == pytest.approx(1e-3, rel=1e-2)


def test_an_item_that_breaks_fails_alone(part, monkeypatch):
    folder = part("p")
    monkeypatch.setattr("data_pipelines.clouds.sampling.unit_sphere", lambda xyz: 1 / 0)
    status, rows = run(folder, "--only", "p")
    assert status == 1 and "ZeroDivisionError" in rows["p/normalised"]["note"]
    assert rows["p/filled"]["ok"] and rows["p/left"]["ok"]


def test_wrong_directories_and_arguments_are_told_in_one_line(part, tmp_path, capsys):
    def told(*arguments) -> str:
        assert main([str(a) for a in arguments]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0]

    assert "manifest.json" in told(tmp_path / "nowhere")
    folder = part("p")
    assert "no item 'zz'" in told(folder, "--only", "p,zz")
    assert "records nothing of h" in told(folder, "--only", "h")
    (folder / "p.npz").write_bytes(b"PK\x03\x04broken")
    assert "p.npz" in told(folder, "--only", "p")
    (folder / "manifest.json").write_text("{}")
    assert "no arrays, configs" in told(folder)


def test_only_the_three_named_arrays_may_part_from_the_recorded_ones(part):
    recording = Recording(part("p"))
    entry = next(e for e in recording.entries if e.name == "p/normalised")
    with pytest.raises(ParityError, match="may not part"):
        _row(recording, Found(entry, 0, "because", 0))


def test_what_we_do_instead_is_checked(part, monkeypatch):
    """The filling of the data pipeline: a wrong neighbour must fail, though the row is by design."""
    from data_pipelines.rendering import views as render

    right = render.fill_unseen

    def shifted(points, pixel, seen):
        return right(points[:, ::-1] * [1, 5, 1], pixel, seen)

    monkeypatch.setattr(render, "fill_unseen", shifted)
    rows = {row.name: row for row in check(Recording(part("p")), ["p"])}
    assert not rows["p/filled"].ok and rows["p/filled"].by_design and rows["p/left"].ok


# ---- its parts


def test_judging_by_hand():
    about = {"accept_atol": 0.1, "accept_rms": 0.06, "what": "two numbers"}
    theirs = np.array([1.0, 2.0], np.float32)
    row = judge("x", np.array([1.05, 2.0]), theirs, about)
    assert row.ok and row.max_abs == pytest.approx(0.05, abs=1e-6) and row.rms == pytest.approx(0.05 / 2**0.5, abs=1e-6)
    assert not judge("x", np.array([1.15, 2.0]), theirs, about).ok  # largest difference
    assert not judge("x", np.array([1.09, 2.09]), theirs, about).ok  # rms alone
    assert not judge("x", np.array([np.nan, 2.0]), theirs, about).ok
    assert judge("x", np.array([np.nan, 2.0]), theirs, about).to_json()["max_abs"] is None
    assert "shape" in judge("x", np.zeros(3), theirs, about).note
    assert "no bounds" in judge("x", theirs, theirs, {}).note
    assert judge("x", np.array([1, 2]), np.array([1, 2], np.int16), {}).ok
    assert not judge("x", np.array([1, 3]), np.array([1, 2], np.int16), {}).ok
    assert not judge("x", np.array([1.0, 2.0]), np.array([1, 2]), {}).ok


def test_the_described_part_is_taken_only_where_the_shape_needs_it():
    x = np.arange(24).reshape(2, 12)
    assert np.array_equal(kept_part(x, (2, 4), "features[:, ::3] of layers [2,4,6]"), x[:, ::3])
    assert np.array_equal(kept_part(x, (2, 5), "the first five, [:, :5]"), x[:, :5])
    assert kept_part(x, (2, 12), "features[:, ::3]") is x
    assert kept_part(x, (2, 5), "features[:, ::3]") is x and kept_part(x, (2, 5), "[4, ::2]") is x


@pytest.mark.parametrize("name", ["b/patch_l24", "full/b/patch_l24", "full/b_patch_l24", "b/full_patch_l24", "b/patch_l24_full"])
def test_names_of_the_full_configuration(name):
    assert split_name(name) == ("b", "patch_l24")
    assert split_name("full/patch_l24") == ("", "patch_l24")


def test_a_name_without_an_item_is_told_by_its_description(part):
    folder = part("a", "b")
    recording = Recording(folder)
    about = {"file": "full.npz", "key": "x", "config": "SMALL", "shape": [1], "dtype": "float32"}
    tokens = "tokens (index 0 = CLS) after layer 24 (1-based) through ln_post @ proj, no DPAM"
    assert recording._item_like("patch_l24", {**about, "what": tokens}) == "a"
    tokens = "tokens (index 0 = CLS) after layer 24 with DPAM in the last 19 layers (6..24): V-V path for layers >= 6"
    assert recording._item_like("patch_l24", {**about, "what": tokens}) == "b"
    assert recording._item_like("something", {**about, "what": tokens}) == "?"


def test_the_full_configuration_as_recorded(shared_reference, tmp_path):
    """Sizes from the manifest; our converters take every name of params_full.json that the forward passes use."""
    sizes = {
        "vision": {"width": 1024, "heads": 16, "layers": 24, "patch": 14, "image": 336, "grid": 24}, "embed_dim": 768,
        "text": {"width": 768, "heads": 12, "layers": 12, "vocab": 49408, "context": 77}, "DPAM_layer": 20, "n_ctx": 12,
        "deep_prompt_depth": 9, "srm_d_model": 768, "lora": {"rank": 8, "alpha": 16, "scaling": 2.0}, "temperature": 0.07,
        "gddm": {"text_dim": 768, "point_dim": 128, "prototypes": 32, "top_k": 12, "defect_tokens": 1, "heads": 4},
    }  # fmt: skip
    manifest = {"configs": {"FULL": sizes}, "weight_seed": {"FULL": 2}, "inputs": {}, "arrays": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in ("params_full.json", "weights_check.json"):
        shutil.copyfile(shared_reference / name, tmp_path / name)
    model = Model(Recording(tmp_path), "FULL", 2)
    assert (model.clip.vv_blocks, model.clip.grid, model.clip.remat) == (19, 24, True)
    learner, stats = model.learner  # checked against the fingerprints recorded for seed 2
    assert learner["prompts"]["deep"].shape == (8, 4, 768) and learner["gddm"]["attn"]["qkv_kernel"].shape == (768, 3, 4, 192)
    assert stats["pointnet2"]["head"]["0"]["var"].shape == (128,)
    assert model.srm["out"]["kernel"].shape == (1536, 768)

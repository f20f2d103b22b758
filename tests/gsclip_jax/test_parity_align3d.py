"""The comparison with the arrays recorded from Align3D-AD's code, and breakages that it has to notice."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.methods.align3d import aligner
from gsclip_jax.models.layers import linear, normalise
from gsclip_jax.models.precision import product
from gsclip_jax.parity import align3d as parity
from gsclip_jax.parity.__main__ import main
from gsclip_jax.parity.check import check
from gsclip_jax.parity.recording import Recording


def outputs(folder, items) -> set[str]:
    arrays = json.loads((folder / "manifest.json").read_text())["arrays"]
    return {name for name in arrays if name[0] in items and not name.partition("/")[2].startswith("in_")}


def missed(folder, *items) -> set[str]:
    parity.recorded.cache_clear()
    return {row.name for row in check(Recording(folder), items) if not row.ok}


def test_quick_items_pass(shared_align3d, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert main([str(shared_align3d), "--only", "q,r,s,t,u,w", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["arrays"]
    assert {row["name"] for row in rows} == outputs(shared_align3d, "qrstuw") and not [row for row in rows if "by_design" in row]
    assert f"{len(rows)} arrays, {len(rows)} ok" in capsys.readouterr().out


@pytest.mark.slow
def test_every_recorded_array_passes(shared_align3d, tmp_path):
    out = tmp_path / "rows.json"
    assert main([str(shared_align3d), "--json", str(out)]) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["arrays"]}
    assert set(rows) == outputs(shared_align3d, "qrstuvwxyz") and len(rows) == 169
    assert not [row for row in rows.values() if "by_design" in row]


# ---- nothing wrong passes


def test_a_tanh_gelu_is_noticed(shared_align3d, monkeypatch):
    def tanh(params, x):
        for name in ("input", "projection"):
            x = jax.nn.gelu(linear(params[name], x), approximate=True)
        return linear(params["output"], x)

    monkeypatch.setattr(aligner, "mlp", tanh)
    assert missed(shared_align3d, "r") == {"r/global_raw", "r/local_raw", "r/global", "r/local"}


def test_an_alignment_without_token_0_is_noticed(shared_align3d, monkeypatch):
    whole = aligner.alignment

    def without(aligned, colour, weights=1.0):
        weights = weights if isinstance(weights, float) else weights[..., 1:]
        cut = [jnp.concatenate([x[..., :1, :], x[..., 2:, :]], axis=-2) for x in (aligned, colour)]
        return whole(*cut, weights)

    monkeypatch.setattr(aligner, "alignment", without)
    found = missed(shared_align3d, "t")
    assert {"t/loss_local", "t/loss_total", "t/grad_total:aligner.local_mlp.output.weight", "t/loss_local_weighted"} <= found
    assert "t/loss_global" not in found


def test_a_token_0_left_out_of_the_similarities_is_noticed(shared_align3d, monkeypatch):
    plain = aligner.similarities
    monkeypatch.setattr(aligner, "similarities", lambda grey, colour: plain(grey, colour[..., 1:, :]))
    assert {"s/s", "t/weight_weighted"} <= missed(shared_align3d, "s", "t")


def test_weights_divided_by_their_sum_are_noticed(shared_align3d, monkeypatch):
    plain = aligner.consistency_weights

    def divided(s, strength, scale=1.0):
        weights = plain(s, strength, scale)
        return weights / weights.mean()

    monkeypatch.setattr(aligner, "consistency_weights", divided)
    found = missed(shared_align3d, "t")
    assert {"t/weight_weighted", "t/loss_local_weighted", "t/loss_total_weighted"} <= found and "t/loss_total" not in found


def test_a_positive_with_gradient_is_noticed(shared_align3d, monkeypatch):
    def attached(anchor, positive, negative):
        anchor, positive, negative = map(normalise, (anchor, positive, negative))
        towards, away = (product("...e,...e->...", anchor, other) for other in (positive, negative))
        return jax.nn.softplus(away - towards).mean()

    monkeypatch.setattr(aligner, "contrast", attached)
    assert missed(shared_align3d, "w") == {"w/contrastive", "w/grad_anchor", "w/grad_negative"}


def test_a_temperature_in_the_contrastive_term_is_noticed(shared_align3d, monkeypatch):
    def cooled(anchor, positive, negative):
        anchor, positive, negative = normalise(anchor), normalise(jax.lax.stop_gradient(positive)), normalise(negative)
        towards, away = (product("...e,...e->...", anchor, other) / 0.07 for other in (positive, negative))
        return jax.nn.softplus(away - towards).mean()

    monkeypatch.setattr(aligner, "contrast", cooled)
    assert missed(shared_align3d, "w") == {"w/contrastive", "w/grad_anchor", "w/grad_negative"}


def test_a_switch_one_epoch_late_is_noticed(shared_align3d, monkeypatch):
    plain = parity.Stage1
    monkeypatch.setattr(parity, "Stage1", lambda **given: replace(plain(**given), scr_epochs=given.get("scr_epochs", 50) - 1))
    assert "u/adam_losses" in missed(shared_align3d, "u")


def test_an_array_that_nothing_answers_for_fails(shared_align3d, tmp_path):
    """Another name for a recorded array: a row that says so."""
    manifest = json.loads((shared_align3d / "manifest.json").read_text())
    manifest["arrays"] = {"w/other": manifest["arrays"]["w/contrastive"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in ("w.npz", "params_small.json", "weights_check.json"):
        (tmp_path / name).write_bytes((shared_align3d / name).read_bytes())
    rows = {row.name: row for row in check(Recording(tmp_path), ["w"])}
    assert not rows["w/other"].ok and rows["w/other"].note == "not checked"
    assert np.isfinite(Recording(shared_align3d).array("w/contrastive"))

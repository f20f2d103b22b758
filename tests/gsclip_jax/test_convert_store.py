"""Our own weight format: what is saved comes back bit-equal, and every kind of damage is one clear line."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.convert.store import content_hash, flatten, is_stored, load_params, save_params
from gsclip_jax.runtime.keys import WeightsError
from tests.parts import compiled_by


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    return {
        "clip": {
            "visual": {"proj": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)},
            "logit_scale": jnp.float32(4.6),
            "ids": jnp.arange(3),
        },
        "srm": {"kernel": np.asfortranarray(rng.standard_normal((5, 2)).astype(np.float32))},
    }


def equal(a, b):
    a, b = flatten(a), flatten(b)
    assert list(a) == list(b)
    for name in a:
        assert a[name].shape == b[name].shape and np.array_equal(np.asarray(a[name]), np.asarray(b[name])), name


def test_reload_is_bit_equal_and_keeps_the_config(tree, tmp_path):
    sha = save_params(tmp_path / "w", tree, config={"clip": {"patch": 14}, "mean": [0.1, 0.2]})
    back, config = load_params(tmp_path / "w", like=tree)
    equal(tree, back)
    assert config == {"clip": {"patch": 14}, "mean": [0.1, 0.2]}
    assert sha == content_hash(back)
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == ["config.json", "params.safetensors"]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(back))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_storage_rounds_once_and_loads_as_float32(tree, tmp_path, dtype):
    save_params(tmp_path / "clip.safetensors", tree, config={}, dtype=dtype)
    assert compiled_by(lambda: load_params(tmp_path / "clip.safetensors")) == 0  # a program a shape takes longer than reading
    back, _ = load_params(tmp_path / "clip.safetensors")
    assert back["srm"]["kernel"].dtype == jnp.float32 and jnp.issubdtype(back["clip"]["ids"].dtype, jnp.integer)
    rounded = jnp.asarray(tree["srm"]["kernel"]).astype(dtype).astype("float32")
    np.testing.assert_array_equal(back["srm"]["kernel"], rounded)
    assert not np.array_equal(back["srm"]["kernel"], tree["srm"]["kernel"])


def test_hash_depends_on_names_shapes_and_values_not_on_order(tree):
    turned = {"srm": tree["srm"], "clip": dict(reversed(tree["clip"].items()))}
    assert content_hash(turned) == content_hash(tree)
    for other in (
        {"srm": {"kernel": tree["srm"]["kernel"].T}},
        {"srm": {"kernal": tree["srm"]["kernel"]}},
        {"srm": {"kernel": np.nextafter(tree["srm"]["kernel"], 9, dtype=np.float32)}},
    ):
        assert content_hash({**tree, **other}) != content_hash(tree)


def test_all_differences_in_one_message(tree, tmp_path):
    save_params(tmp_path, tree, config={})
    like = {
        "clip": {"visual": {"proj": jax.ShapeDtypeStruct((4, 5), jnp.float32)}, "logit_scale": jnp.float32(0)},
        "srm": {"kernel": np.zeros((5, 2)), "bias": np.zeros(2)},
    }
    with pytest.raises(WeightsError) as info:
        load_params(tmp_path, like=like)
    text = str(info.value)
    assert "1 missing: srm/bias" in text and "1 unexpected: clip/ids" in text
    assert "clip/visual/proj (4, 3) instead of (4, 5)" in text and "\n" not in text and "params.safetensors" in text


def test_damage_is_told_in_one_line(tree, tmp_path):
    save_params(tmp_path, tree, config={})
    file, config = tmp_path / "params.safetensors", tmp_path / "config.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_params(tmp_path)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match="content differs from the hash"):
        load_params(tmp_path)
    file.write_bytes(whole)
    document = json.loads(config.read_text())
    document["weights"]["format"] = "gsclip_jax-9"
    config.write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="gsclip_jax-9"):
        load_params(tmp_path)
    config.write_text("{}")
    with pytest.raises(WeightsError, match="not the configuration"):
        load_params(tmp_path)
    file.unlink()
    with pytest.raises(WeightsError, match="0 .safetensors files"):
        load_params(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        load_params(tmp_path / "absent")


def test_what_cannot_be_stored_is_refused_and_leaves_nothing(tree, tmp_path):
    target = tmp_path / "w"
    for bad, what in (
        ({"a": [np.zeros(2)]}, "list"),
        ({"a": None}, "NoneType"),
        ({"a/b": np.zeros(2)}, "a/b"),
        ({"a": np.array([1.0, np.nan])}, "not finite"),
    ):
        with pytest.raises(ValueError, match=what):
            save_params(target, bad, config={})
    with pytest.raises(ValueError, match="float16"):
        save_params(target, {"a": np.float32([1e6])}, config={}, dtype="float16")
    with pytest.raises(ValueError, match="int8"):
        save_params(target, tree, config={}, dtype="int8")
    with pytest.raises(TypeError):
        save_params(target, tree, config={"x": object()})
    assert not target.exists()


def test_an_interrupted_write_keeps_the_old_weights(tree, tmp_path, monkeypatch):
    save_params(tmp_path, tree, config={"which": "old"})
    real = os.replace

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_params(tmp_path, {"srm": {"kernel": np.zeros((5, 2))}}, config={"which": "new"})
    monkeypatch.setattr(os, "replace", real)
    back, config = load_params(tmp_path)
    equal(tree, back)
    assert config == {"which": "old"} and sorted(os.listdir(tmp_path)) == ["config.json", "params.safetensors"]


def test_format_is_recognised(tree, tmp_path):
    save_params(tmp_path / "ours", tree, config={})
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "clip"}')
    assert is_stored(tmp_path / "ours") and is_stored(tmp_path / "ours" / "params.safetensors")
    assert not is_stored(tmp_path / "theirs") and not is_stored(tmp_path / "nowhere")

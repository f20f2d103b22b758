"""A trained model as one folder: what training changed, the configuration, and the hash of the CLIP it belongs to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipelines.datasets import joined_sizes
from data_pipelines.records.objects import BEFORE, Recipe, recipe_of
from gsclip_jax.build import build_model, load_frozen
from gsclip_jax.convert.store import is_stored, load_params, save_params
from gsclip_jax.inspection.model import EMBEDDED as EMBEDDED  # by its earlier place
from gsclip_jax.inspection.model import Model
from gsclip_jax.inspection.program import inputs_of, specs_of
from gsclip_jax.method import Method, Params, Stats
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.compiled import Jitted

LATER = ("seen",)  # of a recipe: no key of a configuration


def save_model(
    folder: Path, config: ConfigDict, params: Params, stats: Stats, weights: dict, dtype: str = "float32",
    steps: dict[str, int] | None = None,
) -> None:  # fmt: skip
    """Writes all groups but the CLIP with the statistics and the whole configuration.

    Args:
      steps: of every stage, by which a run knows that the model is that of its checkpoints.
    """
    about = {"kind": "gsclip", "config": json.loads(config.to_json_best_effort()), "clip_sha256": weights.get("clip")}
    about |= {} if steps is None else {"steps": steps}
    save_params(folder, jax.device_get({**trained_groups(params), "stats": stats}), config=about, dtype=dtype)


def trained_groups(params: Params) -> Params:
    """All groups but the CLIP's."""
    return {group: tree for group, tree in params.items() if group not in ("clip", "clip_depth")}


def model_folder(workdir: Path) -> Path | None:
    """Where a work directory, or what `gsclip export` wrote, has its trained model; None where it has none."""
    return next((folder for folder in (workdir / "model", workdir) if folder.is_dir() and is_stored(folder)), None)


def finished_model(folder: Path, params: Params, stats: Stats, weights: dict) -> tuple[Params, Stats]:
    """Parameters and statistics with the trained ones of `folder` in their place.

    Raises:
      ConfigError: another CLIP than it was trained with; WeightsError: damage.
    """
    tree, about = load_params(folder)
    if about["clip_sha256"] != weights.get("clip"):
        raise ConfigError(
            f"{folder}: trained with CLIP weights {str(about['clip_sha256'])[:12]}, but config.clip.name holds "
            f"{str(weights.get('clip'))[:12]}; give the weights it was trained with"
        )
    return {**params, **{group: value for group, value in tree.items() if group != "stats"}}, tree.get("stats", stats)


def load_model(folder: Path) -> tuple[Method, Params, Stats, ConfigDict]:
    """The trained method of `save_model`, with its CLIP loaded from where the configuration says.

    Args:
      folder: the model's; of a work directory WORKDIR/model, which may also be what `gsclip export` wrote into
        WORKDIR.

    Raises:
      ConfigError: no trained model there, one of an earlier version, or another CLIP than it was trained with.
    """
    return load_with_weights(folder)[:4]


def load_with_weights(folder: Path) -> tuple[Method, Params, Stats, ConfigDict, dict]:
    """`load_model`, and the record of where the weights came from (`build.build_model`)."""
    home = model_folder(folder.parent) if folder.name == "model" else folder
    if home is None or not is_stored(home):
        raise ConfigError(f"{folder.parent} holds no trained model; run stage2.py with this --workdir first")
    about = json.loads((home / "config.json").read_text())
    if about.get("kind") != "gsclip" or "config" not in about:
        kind = about.get("kind")
        raise ConfigError(f"{home} holds weights of kind {kind!r}, no trained model; name a work directory of stage2.py")
    if not isinstance(about["config"], dict):
        raise ConfigError(f"{home / 'config.json'}: its config is no object; export the model again")
    config = ConfigDict(about["config"])
    if "data" in config:
        config.data.update({key: value for key, value in BEFORE.items() if key not in config.data})
    wanted = [key for key in Recipe.__dataclass_fields__ if key not in LATER] + ["point_sizes", "name", "train_category"]
    missing = [f"data.{key}" for key in wanted if key not in config.get("data", {})]
    if missing:
        raise ConfigError(f"{home}: made by an earlier version, its configuration has no {', '.join(missing)}; train it again")
    method, params, weights = load_frozen(config)
    shapes, stats = jax.eval_shape(method.init, jax.random.key(0))
    trained = finished_model(home, params, stats, weights)
    if shapes.keys() | set(method.loads) <= trained[0].keys() and trained[1] is not stats:
        return method, *trained, config, weights
    method, params, stats, weights = build_model(config)  # of an earlier version, without what the method has now
    return method, *finished_model(home, params, stats, weights), config, weights


def read_saved(home: Path, name: str) -> Model:
    """What `save_model` wrote, for inspection. Errors: as `load_model`."""
    return model_of(home, name, *load_model(home))


def model_of(home: Path, name: str, method: Method, params: Params, stats: Stats, config: ConfigDict) -> Model:
    """`read_saved` of what is loaded already."""
    about = json.loads((home / "config.json").read_text())
    recipe = recipe_in(config)
    made_of = [about["weights"]["sha256"], about["clip_sha256"], recipe.json(), config.method, config.get("model", {}).to_dict()]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    method = method.for_inference()
    specs = specs_of(inputs_of(recipe), 1)
    score, described = (Jitted(jax.jit(of), (params, stats), specs) for of in (method.predict, method.predict_with_tokens))
    return Model(name, digest, recipe, score, described=described,
                 ahead=lambda tokens: (described if tokens else score).ahead())  # fmt: skip


def recipe_in(config: ConfigDict) -> Recipe:
    """How the objects that a model was trained on were made from scans; colour is for training alone.

    Raises:
      DataError: as `recipe_of`.
    """
    data = {key: config.data[key] for key in (*Recipe.__dataclass_fields__, "point_sizes") if key in config.data}
    return recipe_of(joined_sizes(data) | {"rgb_render": False})

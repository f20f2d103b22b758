"""What the rest of the project calls: a name or path -> configuration and parameters, converted or original."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gsclip_jax.clip import ClipConfig, clip_shapes
from gsclip_jax.convert import authors, huggingface, openai_names
from gsclip_jax.convert.authors import Converted
from gsclip_jax.convert.files import Progress, State, load_state
from gsclip_jax.convert.keys import WeightsError, check_keys
from gsclip_jax.convert.store import content_hash, flatten, is_stored, load_params
from gsclip_jax.pointnet2 import PointNet2Config, init_pointnet2
from gsclip_jax.surface import init_surface

MINI = Path(__file__).resolve().parents[1] / "assets" / "mini"
OPENAI_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # where it lies beside the weights, it is taken as their tokenizer

PathLike = str | os.PathLike[str]


def convert_source(source: PathLike, *, revision: str | None = None, cache_dir: PathLike | None = None,
                   progress: Progress | None = None) -> tuple[Converted, State, Path | None]:
    """Converts a file, a directory or a hub name ('owner/model').

    Returns:
        (groups of parameters, what was read (tensors dropped), tokenizer file or directory or None).
        `config["source"]` says where the weights came from: file, format, SHA-256, and the commit for a hub name.

    Raises:
        WeightsError: one line: what is wrong, in which file.
    """
    commit = None
    name = os.fspath(source)
    if huggingface.is_hub_name(name):
        path, commit = huggingface.fetch(name, revision, cache_dir)
    elif revision is not None:
        raise WeightsError(f"{name}: a revision is for hub names ('owner/model'); leave it out for files")
    else:
        path = Path(source)
        if not path.exists():
            raise WeightsError(f"{path}: no such file or directory, and no hub name ('owner/model') either")
    state = load_state(path, progress=progress)
    folder = path if path.is_dir() else path.parent
    tensors = authors.plain_names(state.tensors, str(state.path))
    if authors.recognise(tensors, str(state.path)) == "huggingface" and huggingface.is_huggingface(folder):
        cfg = huggingface.clip_config(folder)
        named, unused = huggingface.to_openai(tensors, cfg, str(state.path))
        converted = Converted("huggingface", {"clip": openai_names.clip_from_state_dict(named, cfg, str(state.path))},
                              config={"clip": cfg.to_json()}, unused=unused)
    else:
        converted = authors.convert(state)
    origin = state.source() | ({"hub": name, "revision": commit} if commit else {})
    state.tensors = {}  # frees what the parameters do not share
    converted.config |= {"kind": converted.kind, "source": origin}
    return converted, state, _tokenizer(folder)


def _tokenizer(folder: Path) -> Path | None:
    if (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return folder
    vocabulary = folder / OPENAI_VOCABULARY
    return vocabulary if vocabulary.is_file() else None


def _arrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def _embedded(name_or_path: PathLike) -> PathLike:
    """'mini' is the embedded weights' directory; everything else is what it is."""
    if os.fspath(name_or_path) != "mini":
        return name_or_path
    if not (MINI / "config.json").is_file():
        raise WeightsError(f"mini: the embedded weights are missing in {MINI}; install the package again")
    return MINI


def load_clip(name_or_path: PathLike, *, revision: str | None = None, cache_dir: PathLike | None = None,
              progress: Progress | None = None, **changes: Any) -> tuple[ClipConfig, dict[str, Any], Path | None, str]:
    """A CLIP by name or path.

    Args:
        name_or_path: 'mini' (embedded), an OpenAI .pt file, a Hugging Face directory, a hub name ('owner/model'), or
            what `python -m gsclip_jax.convert` wrote.
        revision, cache_dir: for hub names (default: the pinned commit, Hugging Face's own cache).
        changes: fields of ClipConfig that the weights do not determine: dtype, remat, vv_blocks, activation, ...

    Returns:
        (configuration, float32 parameters as of `init_clip`, tokenizer path or None, SHA-256 of the parameters, which
        does not depend on how they were stored).

    Raises:
        WeightsError: one line: no such file, wrong kind, keys that do not fit, damage.
        ValueError: `changes` that do not fit the configuration.
    """
    name_or_path = _embedded(name_or_path)
    if is_stored(name_or_path):
        tree, config = load_params(name_or_path)
        if "clip" not in config and "vision_width" not in config:
            raise WeightsError(f"{name_or_path}: converted weights of kind {config.get('kind')!r}, but no CLIP")
        cfg = ClipConfig.from_json(config.get("clip", config))
        params = tree.get("clip", tree)
        wanted = {name: leaf.shape for name, leaf in flatten(clip_shapes(cfg)).items()}
        check_keys({name: leaf.shape for name, leaf in flatten(params).items()}, wanted, str(name_or_path),
                   "Convert the weights again")
        path = Path(name_or_path)
        tokenizer = _tokenizer(path if path.is_dir() else path.parent)
    else:
        converted, _, tokenizer = convert_source(name_or_path, revision=revision, cache_dir=cache_dir,
                                                 progress=progress)
        if "clip" not in converted.params:
            raise WeightsError(f"{name_or_path}: a {converted.kind} checkpoint, not a whole CLIP")
        cfg, params = ClipConfig.from_json(converted.config["clip"]), _arrays(converted.params["clip"])
    return dataclasses.replace(cfg, **_known(changes)), params, tokenizer, content_hash(params)


def _known(changes: dict[str, Any]) -> dict[str, Any]:
    fixed = {"image_size", "patch", "embed_dim", "vocab", "context"} | {
        f"{tower}_{size}" for tower in ("vision", "text") for size in ("width", "layers", "heads")}
    unknown = changes.keys() - ({field.name for field in dataclasses.fields(ClipConfig)} - fixed)
    if unknown:
        raise ValueError(f"load_clip: {', '.join(sorted(unknown))} cannot be changed, the weights determine the sizes")
    return changes


def load_checkpoint(path: PathLike, *, progress: Progress | None = None) -> Converted:
    """Any converted directory or original checkpoint: groups of parameters and statistics as jax arrays.

    The authors' stage 1 gives params {prompts, pointnet2, gddm} and stats {pointnet2}; stage 2 {srm, lora, clip_depth:
    {visual}}; PointAD {prompts} without a shape prompt; PointNet++ {pointnet2}; a CLIP {clip}.

    Raises:
        WeightsError: one line: what is wrong, in which file.
    """
    path = _embedded(path)
    if not is_stored(path):
        converted, _, _ = convert_source(path, progress=progress)
        return dataclasses.replace(converted, params=_arrays(converted.params), stats=_arrays(converted.stats))
    tree, config = load_params(path)
    return Converted(config.get("kind", ""), {name: group for name, group in tree.items() if name != "stats"},
                     tree.get("stats", {}), config, config.get("source", {}).get("unused", []))


def load_pointnet2(path: PathLike, cfg: PointNet2Config | None = None, *, progress: Progress | None = None
                   ) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(params, stats, SHA-256 of both) of a PointNet++: the S3DIS `best_model.pth`, the one in a stage-1 checkpoint, or
    a converted directory. `cfg` (default: the published sizes) is what it must fit.

    Raises:
        WeightsError: one line: what is wrong, in which file.
    """
    converted = load_checkpoint(path, progress=progress)
    if "pointnet2" not in converted.params:
        raise WeightsError(f"{path}: a {converted.kind or 'converted'} checkpoint without PointNet++; give the S3DIS "
                           "best_model.pth (pointnet2_sem_seg) or a stage-1 checkpoint")
    found = {"params": converted.params["pointnet2"], "stats": converted.stats.get("pointnet2", {})}
    params, stats = jax.eval_shape(lambda key: init_pointnet2(key, cfg or PointNet2Config()), jax.random.key(0))
    wanted = {name: leaf.shape for name, leaf in flatten({"params": params, "stats": stats}).items()}
    check_keys({name: leaf.shape for name, leaf in flatten(found).items()}, wanted, str(path))
    return found["params"], found["stats"], content_hash(found)


def load_surface(name_or_path: PathLike, embed_dim: int) -> tuple[dict[str, Any], str]:
    """(params, SHA-256) of the surface stream that lies with an embedded CLIP.

    Raises:
        WeightsError: one line: these weights have none, or one of another shape.
    """
    path = _embedded(name_or_path)
    found = load_params(path)[0].get("surface") if is_stored(path) else None
    if found is None:
        raise WeightsError(f"{name_or_path}: no surface stream lies with this CLIP (pretrain.py with clip_stage.defects makes "
                           "one); set config.model.surface_share=0 to score by the views alone")
    wanted = jax.eval_shape(lambda key: init_surface(key, embed_dim), jax.random.key(0))
    check_keys({name: leaf.shape for name, leaf in flatten(found).items()},
               {name: leaf.shape for name, leaf in flatten(wanted).items()}, f"{path}, surface stream")
    return found, content_hash(found)

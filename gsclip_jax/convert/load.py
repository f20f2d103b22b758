"""What the rest of the project calls: a name or path -> configuration and parameters, converted or original."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from gsclip_jax.convert import authors, huggingface, open_clip, openai_names
from gsclip_jax.convert.authors import Converted
from gsclip_jax.convert.files import OPEN_CLIP_CONFIG, Progress, State, load_state
from gsclip_jax.convert.open_clip import Said
from gsclip_jax.convert.store import content_hash, flatten, is_stored, load_params
from gsclip_jax.methods.surface.descriptor import init_surface
from gsclip_jax.models.clip import ClipConfig, clip_shapes
from gsclip_jax.models.pointnet2 import PointNet2Config, init_pointnet2
from gsclip_jax.runtime.keys import WeightsError, check_keys
from gsclip_jax.runtime.names import is_hub_name

MINI = Path(__file__).resolve().parents[1] / "assets" / "mini"
OPENAI_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # where it lies beside the weights, it is taken as their tokenizer

PathLike = str | os.PathLike[str]


def convert_source(source: PathLike, *, revision: str | None = None, cache_dir: PathLike | None = None,
                   progress: Progress | None = None, said: Said | None = None) -> tuple[Converted, State, Path | None]:
    """Converts a file, a directory or a hub name ('owner/model'); `said` is what the user says of a CLIP.

    Returns:
        (groups of parameters, what was read (tensors dropped), tokenizer file or directory or None).
        `config["source"]` says where the weights came from: file, format, SHA-256, and the commit for a hub name.

    Raises:
        WeightsError: one line: what is wrong, in which file.
    """
    commit = None
    name = os.fspath(source)
    if is_hub_name(name):
        path, commit = huggingface.fetch(name, revision, cache_dir)
    elif revision is not None:
        raise WeightsError(f"{name}: a revision is for hub names ('owner/model'); leave it out for files")
    else:
        path = Path(source)
        if not path.exists():
            raise WeightsError(f"{path}: no such file or directory, and no hub name ('owner/model') either")
    if path.name == OPEN_CLIP_CONFIG:
        path = path.parent
    state = load_state(path, progress=progress)
    folder = path if path.is_dir() else path.parent
    converted = _convert(state, folder, said or Said())
    origin = state.source() | ({"hub": name, "revision": commit} if commit else {})
    state.tensors = {}  # frees what the parameters do not share
    converted.config |= {"kind": converted.kind, "source": origin}
    return converted, state, _tokenizer(folder)


def _convert(state: State, folder: Path, said: Said) -> Converted:
    where = str(state.path)
    tensors = open_clip.plain_text_names(authors.plain_names(state.tensors, where))
    kind = authors.recognise(tensors, where)
    if said.config and kind != "openai":
        raise WeightsError(f"{where}: of kind {kind}, an open_clip configuration (--config) is for CLIPs in OpenAI's names")
    if kind == "huggingface":
        if not huggingface.is_huggingface(folder):
            raise WeightsError(f"{where}: Hugging Face weights; give the directory that also holds config.json")
        cfg = said.agree(*huggingface.clip_config(folder), str(folder / "config.json"))
        tensors, unused = huggingface.to_openai(tensors, cfg, where)
    elif kind == "openai":
        cfg, notes = open_clip.clip_config(tensors, state, folder, said)
        cfg = dataclasses.replace(cfg, **huggingface.special_ids(folder, cfg.vocab))
        state.notes += notes
        unused = [name for name in tensors if name in openai_names.NOT_NEEDED]
    else:
        if said != Said():
            raise WeightsError(f"{where}: of kind {kind}, and --activation, --heads, --mean, --std are for CLIPs; leave them out")
        return authors.convert(state)
    params = openai_names.clip_from_state_dict(tensors, cfg, where)
    return Converted(kind, {"clip": params}, config={"clip": cfg.to_json()}, unused=unused)


def _tokenizer(folder: Path) -> Path | None:
    if (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return folder
    vocabulary = folder / OPENAI_VOCABULARY
    return vocabulary if vocabulary.is_file() else None


def _embedded(name_or_path: PathLike) -> PathLike:
    """'mini' is the embedded weights' directory; everything else is what it is."""
    if os.fspath(name_or_path) != "mini":
        return name_or_path
    if not (MINI / "config.json").is_file():
        raise WeightsError(f"mini: the embedded weights are missing in {MINI}; install the package again")
    return MINI


def load_clip(name_or_path: PathLike, *, revision: str | None = None, cache_dir: PathLike | None = None,
              progress: Progress | None = None, heads: tuple[int, int] | None = None, **changes: Any
              ) -> tuple[ClipConfig, dict[str, Any], Path | None, str]:
    """A CLIP by name or path.

    Args:
        name_or_path: 'mini' (embedded), an OpenAI .pt file, a Hugging Face directory, a hub name ('owner/model'), or
            what `python -m gsclip_jax.convert` wrote.
        revision, cache_dir: for hub names (default: the pinned commit, Hugging Face's own cache).
        heads: attention heads of the vision and the text tower, of a file that does not say (nor converted weights).
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
        try:
            cfg = ClipConfig.from_json(config.get("clip", config))
        except (ValueError, TypeError, AttributeError) as error:
            raise WeightsError(f"{name_or_path}: config.json describes no CLIP ({error}); convert the weights again") from error
        params = tree.get("clip", tree)
        if not isinstance(params, dict):
            raise WeightsError(f"{name_or_path}: 'clip' is an array and not a group; convert the weights again")
        wanted = {name: leaf.shape for name, leaf in flatten(clip_shapes(cfg)).items()}
        check_keys({name: leaf.shape for name, leaf in flatten(params).items()}, wanted, str(name_or_path),
                   "Convert the weights again")
        path = Path(name_or_path)
        tokenizer = _tokenizer(path if path.is_dir() else path.parent)
    else:
        converted, _, tokenizer = convert_source(name_or_path, revision=revision, cache_dir=cache_dir, progress=progress,
                                                 said=Said(changes.get("activation"), heads))
        if "clip" not in converted.params:
            raise WeightsError(f"{name_or_path}: a {converted.kind} checkpoint, not a whole CLIP")
        cfg, params = ClipConfig.from_json(converted.config["clip"]), jax.device_put(converted.params["clip"])
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
    {visual}}; PointAD and Align3D-AD's rendering branch {prompts} without a shape prompt; its other file
    {rgb_prompts, aligner}; PointNet++ {pointnet2}; a CLIP {clip}.

    Raises:
        WeightsError: one line: what is wrong, in which file.
    """
    path = _embedded(path)
    if not is_stored(path):
        converted, _, _ = convert_source(path, progress=progress)
        return dataclasses.replace(converted, params=jax.device_put(converted.params), stats=jax.device_put(converted.stats))
    tree, config = load_params(path)
    source = config.get("source")
    return Converted(str(config.get("kind", "")), {name: group for name, group in tree.items() if name != "stats"},
                     tree.get("stats", {}), config, source.get("unused", []) if isinstance(source, dict) else [])


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
    stats = converted.stats if isinstance(converted.stats, dict) else {}
    found = {"params": converted.params["pointnet2"], "stats": stats.get("pointnet2", {})}
    params, stats = jax.eval_shape(lambda key: init_pointnet2(key, cfg or PointNet2Config()), jax.random.key(0))
    wanted = {name: leaf.shape for name, leaf in flatten({"params": params, "stats": stats}).items()}
    check_keys({name: leaf.shape for name, leaf in flatten(found).items()}, wanted, str(path))
    return found["params"], found["stats"], content_hash(found)


def surface_shapes(embed_dim: int) -> dict[str, Any]:
    """The surface stream's parameters as shapes: what `load_surface` fills."""
    return jax.eval_shape(lambda key: init_surface(key, embed_dim), jax.random.key(0))


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
    wanted = surface_shapes(embed_dim)
    check_keys({name: leaf.shape for name, leaf in flatten(found).items()},
               {name: leaf.shape for name, leaf in flatten(wanted).items()}, f"{path}, surface stream")
    return found, content_hash(found)

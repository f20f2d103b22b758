"""Exported models on the Hugging Face hub: fetched by name, pushed, and the card that describes them there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gsclip_jax.runtime.keys import WeightsError, plain

CARD = "README.md"
# Every file that an exported model may have, by its full name: nothing else of a repository is fetched or pushed.
FILES = ("config.json", CARD, "params.safetensors", "model.stablehlo", "model.onnx", "calibration.json")


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a model 'owner/name' in the client's cache (HF_HOME), asked for anew where there is a network.

    Args:
      revision: a commit, branch or tag; None for the branch main.

    Raises:
      WeightsError: no network and not in the cache, no such repository, or no model in it; one line.
    """
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the client passes on whatever its HTTP library raises
        at = f"@{revision}" if revision else ""
        raise WeightsError(f"{name}{at}: no folder here, and it cannot be fetched from the Hugging Face hub ({_reason(error)}); "
                           "without a network give a folder") from error  # fmt: skip
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{name}: the repository has no config.json, so no model that gsclip export wrote")
    return folder


def push(folder: Path, name: str, private: bool = False) -> str:
    """Uploads an exported model as a repository of the hub, which is made where there is none; returns its address.

    Raises:
      WeightsError: no token, no access or no network; one line.
    """
    import huggingface_hub as hub

    try:
        client = hub.HfApi(library_name="gsclip_jax")
        address = client.create_repo(name, private=private, exist_ok=True)
        # What an earlier push left of another format goes: a repository is one model.
        client.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), delete_patterns=list(FILES),
                             commit_message="gsclip export")  # fmt: skip
    except Exception as error:
        raise WeightsError(f"--push {name}: {_reason(error)}; the model is written, in {folder}; a token with the right to write "
                           "comes from `hf auth login` or HF_TOKEN") from error  # fmt: skip
    return str(address)


def card(about: Mapping[str, Any], files: Mapping[str, int]) -> str:
    """The text of the model card.

    Args:
      about: what `experiments.export` says of the model: method, data, category, clip, format, digest, recipe.
      files: their names and bytes.
    """
    from huggingface_hub import ModelCardData

    tags = ["anomaly-detection", "point-cloud", "zero-shot", "jax", about["format"]]
    front = ModelCardData(library_name="gsclip_jax", tags=tags)
    rows = "\n".join(f"| `{name}` | {size / 1e6:.2f} MB |" for name, size in files.items())
    recipe = ", ".join(f"{key} {value}" for key, value in about["recipe"].items() if not isinstance(value, list | dict))
    clip = f"\nIt takes the CLIP {_code(about['clip'])}, which does not lie here.\n" if about["clip"] else ""
    return f"""---
{front.to_yaml()}
---

# Zero-shot 3D anomaly detection: {plain(about["method"], 100)}

Scores scans of parts, as a whole and for every point: higher is more anomalous. Method {_code(about["method"])}, trained on
the category {_code(about["category"])} of {_code(about["data"])}. Nothing here says how well it does on other parts: look at its
scores of good parts first.
{clip}
```
pip install gsclip-jax
gsclip inspect part.ply --model OWNER/NAME --out out
```

```
import gsclip_jax
result = gsclip_jax.load("OWNER/NAME")(points)   # numpy [N, 3], any unit
```

| file | size |
|---|---|
{rows}

Format: {_code(about["format"])}. SHA-256 of weights, settings and recipe: `{about["digest"]}`; a calibration belongs to it.
How a scan is sampled and drawn: {plain(recipe, 1000)}.
"""


def _code(text: object) -> str:
    return f"`{plain(text, 200).replace('`', '')}`"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {plain(lines[0], 200)}" if lines else type(error).__name__

"""`python -m gsclip_jax.convert FILE_OR_DIRECTORY_OR_HUBNAME --to DIR`: weights of others into our own format."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gsclip_jax.convert import huggingface
from gsclip_jax.convert.authors import TAKEN, Converted
from gsclip_jax.convert.files import State, show_progress
from gsclip_jax.convert.keys import WeightsError
from gsclip_jax.convert.load import convert_source
from gsclip_jax.convert.store import STORED, copy_beside, flatten, is_stored, save_params


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status: 0, or 1 after one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m gsclip_jax.convert", description=f"Converts {TAKEN}. Nothing from "
                                     "the file is run; torch is not needed.")
    parser.add_argument("source", help="a file, a directory, or a Hugging Face hub name (owner/model)")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="gets params.safetensors and config.json")
    parser.add_argument("--dtype", choices=sorted(STORED), default="float32", help="stored as (default: float32)")
    parser.add_argument("--sha256", metavar="HEX", help="stop unless the source file has this SHA-256")
    parser.add_argument("--revision", help="commit, branch or tag of a hub name (default: a pinned commit, else main)")
    parser.add_argument("--cache-dir", type=Path, help="for hub names (default: Hugging Face's cache)")
    parser.add_argument("--activation", choices=("quick_gelu", "gelu"),
                        help="of a CLIP whose file does not say (default: quick_gelu, OpenAI's)")
    options = parser.parse_args(arguments)
    try:
        _check_target(options.to)
        converted, state, tokenizer = convert_source(options.source, revision=options.revision,
                                                     cache_dir=options.cache_dir, progress=show_progress)
        print("\n".join(_report(state)))
        if options.sha256 and options.sha256.lower() not in state.sha256.values():
            raise WeightsError(f"{state.path}: SHA-256 is {', '.join(state.sha256.values())}, not the one asked for")
        if options.activation and "clip" in converted.config:
            converted.config["clip"]["activation"] = options.activation
        _write(options.to, converted, tokenizer, options.dtype)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _check_target(folder: Path) -> None:
    """Refuses to write into a directory that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder}: is a file; --to names a directory")
    others = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    ours = is_stored(folder) and all(name == "params.safetensors" for name in others if name.endswith(".safetensors"))
    if others and not ours:
        raise WeightsError(f"{folder}: holds other files ({', '.join(sorted(others)[:3])}); --to names a new directory")


def _write(folder: Path, converted: Converted, tokenizer: Path | None, dtype: str) -> None:
    copied = []
    if tokenizer is not None:
        sources = [tokenizer] if tokenizer.is_file() else [tokenizer / name for name in huggingface.TOKENIZER]
        copied = [copy_beside(source, folder).name for source in sources if source.is_file()]
    source = {**converted.config["source"], "unused": converted.unused}
    tree = {**converted.params, **({"stats": converted.stats} if converted.stats else {})}
    config = {**converted.config, "source": source}
    sha256 = save_params(folder, tree, config=config, dtype=dtype)
    numbers = {name: sum(leaf.size for leaf in flatten(group).values()) for name, group in converted.params.items()}
    print(f"{converted.kind}: " + ", ".join(f"{name} {count:,} parameters" for name, count in numbers.items()))
    for line in _unused(converted.unused):
        print(f"unused: {line}")
    if "clip" in converted.params:
        print("tokenizer: " + (", ".join(copied) or "none beside the weights; name one in the configuration"))
    print(f"written: {folder} ({dtype}, content {sha256})")


def _unused(names: Sequence[str]) -> list[str]:
    """Unused keys, alike ones (other layer numbers) on one line with their count."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [f"{pattern} ({len(group)} keys)" if len(group) > 1 else group[0] for pattern, group in groups.items()]


def _report(state: State) -> list[str]:
    """Lines about what was read: format, hash, published name, notes."""
    lines = [f"{name}: {state.format}, sha256 {value}" for name, value in state.sha256.items()]
    if state.known:
        lines.append(f"known: this is the public file {state.known}")
    lines += [f"note: {note}" for note in state.notes] + [f"skipped: {name}" for name in state.skipped]
    return lines


if __name__ == "__main__":
    sys.exit(main())

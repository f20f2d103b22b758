"""`python -m gsclip_jax.convert FILE_OR_DIRECTORY_OR_HUBNAME --to DIR`: weights of others into our own format."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.command import Parser, command, guarded
from gsclip_jax.convert import huggingface
from gsclip_jax.convert.authors import TAKEN, Converted
from gsclip_jax.convert.files import State, show_progress
from gsclip_jax.convert.load import convert_source
from gsclip_jax.convert.open_clip import Said
from gsclip_jax.convert.store import STORED, copy_beside, flatten, is_stored, save_params
from gsclip_jax.runtime.keys import WeightsError, plain


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; returns the exit status: 0, or 1 after one line on standard error (2 for wrong options)."""
    parser = Parser(prog="python -m gsclip_jax.convert", description=f"Converts {TAKEN}. Nothing from the file is run; torch is "
                    "not needed. open_clip's weights are converted as the open_clip_config.json beside them says.")
    parser.add_argument("source", help="a file, a directory, or a Hugging Face hub name (owner/model)")
    parser.add_argument("--to", required=True, type=_path, metavar="DIR", help="gets params.safetensors and config.json")
    parser.add_argument("--dtype", choices=sorted(STORED), default="float32", help="stored as (default: float32)")
    parser.add_argument("--sha256", metavar="HEX", help="stop unless the source file has this SHA-256")
    parser.add_argument("--revision", help="commit, branch or tag of a hub name (default: a pinned commit, else main)")
    parser.add_argument("--cache-dir", type=_path, help="for hub names (default: Hugging Face's cache)")
    clip = parser.add_argument_group("what a CLIP's file may not say", "A CLIP without its configuration needs --heads and "
                                     "--activation, unless it is OpenAI's own file; without --mean and --std images are "
                                     "normalised as OpenAI's. What a configuration says cannot be changed.")
    clip.add_argument("--config", type=_path, metavar="FILE", help="open_clip configuration that does not lie beside the weights")
    clip.add_argument("--heads", type=_heads, metavar="VISION,TEXT", help="attention heads of each tower; ViT-H/14: 16,16")
    clip.add_argument("--activation", choices=("quick_gelu", "gelu"), help="quick_gelu: OpenAI's; gelu: open_clip's default")
    clip.add_argument("--mean", type=_colours, metavar="R,G,B", help="of the images it was trained on, e.g. 0.5,0.5,0.5")
    clip.add_argument("--std", type=_colours, metavar="R,G,B", help="the same; each above 0")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("needs the name of a file or directory")
    return Path(text)


def _heads(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"\s*[1-9]\d{0,3}\s*,\s*[1-9]\d{0,3}\s*", text):
        raise argparse.ArgumentTypeError(f"{plain(text, 60)!r} is not VISION,TEXT (two whole numbers, e.g. 16,12)")
    vision, text_heads = map(int, text.split(","))
    return vision, text_heads


def _colours(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"{plain(text, 60)!r} is not R,G,B (three numbers, e.g. 0.5,0.5,0.5)")
    return numbers


def _run(options: argparse.Namespace) -> int:
    _check_target(options.to)
    said = Said(options.activation, options.heads, options.mean, options.std, options.config)
    converted, state, tokenizer = convert_source(options.source, revision=options.revision, cache_dir=options.cache_dir,
                                                 progress=show_progress, said=said)
    if options.sha256 and options.sha256.lower() not in state.sha256.values():
        raise WeightsError(f"{state.path}: SHA-256 is {', '.join(state.sha256.values())}, not the one asked for")
    lines = _write(options.to, converted, tokenizer, options.dtype)
    print("\n".join(map(plain, [*_report(state), *lines])))  # when all is done: nobody may be reading
    return 0


def _check_target(folder: Path) -> None:
    """Refuses to write into a directory that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder}: is a file; --to names a directory")
    others = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    ours = is_stored(folder) and all(name == "params.safetensors" for name in others if name.endswith(".safetensors"))
    if others and not ours:
        raise WeightsError(f"{folder}: holds other files ({', '.join(sorted(others)[:3])}); --to names a new directory")


def _write(folder: Path, converted: Converted, tokenizer: Path | None, dtype: str) -> list[str]:
    """Lines about what was written."""
    companions = []
    if tokenizer is not None:
        sources = [tokenizer] if tokenizer.is_file() else [tokenizer / name for name in huggingface.TOKENIZER]
        companions = [source for source in sources if source.is_file()]
    for source in companions:  # looked at before anything is written
        target = folder / source.name
        if source.read_bytes() != (target.read_bytes() if target.exists() else source.read_bytes()):
            raise WeightsError(f"{target}: is there already and differs from {source}; --to names a new directory")
    about = {**converted.config["source"], "unused": converted.unused}
    tree = {**converted.params, **({"stats": converted.stats} if converted.stats else {})}
    sha256 = save_params(folder, tree, config={**converted.config, "source": about}, dtype=dtype)
    copied = [copy_beside(source, folder).name for source in companions if not (folder / source.name).exists()]
    copied += [source.name for source in companions if source.name not in copied]
    numbers = {name: sum(leaf.size for leaf in flatten(group).values()) for name, group in converted.params.items()}
    lines = [f"{converted.kind}: " + ", ".join(f"{name} {count:,} parameters" for name, count in numbers.items())]
    lines += [f"unused: {plain(line, 200)}" for line in _unused(converted.unused)]
    if "clip" in converted.params:
        lines.append("tokenizer: " + (", ".join(copied) or "none beside the weights; name one in the configuration"))
    return [*lines, f"written: {folder} ({dtype}, content {sha256})"]


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
    sys.exit(command(main))

"""CLIP's byte-pair tokenizer: from OpenAI's vocabulary file, or from a directory in Hugging Face's layout.

Ids are those of OpenAI's `simple_tokenizer.py`; the rows are padded with 0, as OpenAI's and the released code do.
"""

from __future__ import annotations

import functools
import html
import os
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import regex

import gsclip_jax
from gsclip_jax.runtime.documents import read_json, read_text
from gsclip_jax.runtime.keys import WeightsError, listed, plain

SOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
OPENAI_MERGES = 49152 - 256 - 2  # the vocabulary file holds more merges than CLIP was trained with
WORDS = regex.compile(
    rf"{regex.escape(SOS)}|{regex.escape(EOS)}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
)

Merges = Sequence[tuple[str, str]]


class TokenizerError(WeightsError):
    """A vocabulary that cannot be used, or a text that does not fit. The message is one line."""


@functools.cache
def byte_letters() -> dict[int, str]:
    """A visible character for each byte: printable Latin-1 stands for itself, the rest for code points from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in visible}
    hidden = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def vocabulary(merges: Merges) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    letters = list(byte_letters().values())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges), SOS, EOS]
    return {token: i for i, token in enumerate(tokens)}


# What ftfy, which OpenAI's tokenizer runs first, does to single characters; its repair of wrongly decoded words is
# left out.
QUOTES = {ord(curled): "'" for curled in "\u02bc\u2018\u2019\u201a\u201b"} | {
    ord(curled): '"' for curled in "\u201c\u201d\u201e\u201f"
}
JOINED = (0x132, 0x133, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in JOINED} | {0x149: "'n", 0xFB05: "\u017ft"}
WIDE = {code: unicodedata.normalize("NFKC", chr(code)) for code in (0x3000, *range(0xFF01, 0xFFEF))}
REMOVED = (*range(9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
WINDOWS = {code: bytes([code]).decode("cp1252", "ignore").translate(QUOTES) or chr(code) for code in range(0x80, 0xA0)}
PLAIN = WINDOWS | QUOTES | LIGATURES | WIDE | dict.fromkeys(REMOVED)


def clean(text: str) -> str:
    """Entities resolved (twice, as text from the web needs), quotes straight, no ligatures, one space, lower case."""
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)).translate(PLAIN))
    return " ".join(text.split()).lower()


class Tokenizer:
    """Callable: texts -> int32 [n,context], each `[sos] tokens [eos]` and padding.

    Attributes `sos`, `eos`, `dot`, `pad`, `vocab_size`, `context` are what a `ClipConfig` needs to know.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Merges, *, context: int = 77, pad: int = 0, where: str = "?"):
        self.vocab = dict(vocab)
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self.context, self.pad, self.vocab_size = context, pad, len(self.vocab)
        wrong = [token for token, number in self.vocab.items() if type(number) is not int or not 0 <= number < 1 << 24]
        if wrong:
            raise TokenizerError(f"{where}: no CLIP vocabulary, {len(wrong)} tokens without number: {listed(wrong, 4)}")
        needed = [SOS, EOS, *byte_letters().values(), *(letter + WORD_END for letter in byte_letters().values())]
        needed += ["".join(pair) for pair in self.ranks]
        missing = [token for token in needed if token not in self.vocab]
        if missing:
            raise TokenizerError(f"{where}: no CLIP vocabulary, {len(missing)} tokens missing: {listed(missing, 4)}")
        self.sos, self.eos, self.dot = self.vocab[SOS], self.vocab[EOS], self.vocab["." + WORD_END]
        self._word = functools.lru_cache(maxsize=65536)(self._word_ids)

    def _word_ids(self, word: str) -> tuple[int, ...]:
        if word in (SOS, EOS):
            return (self.vocab[word],)
        *start, last = (byte_letters()[byte] for byte in word.encode())
        parts = [*start, last + WORD_END]
        while len(parts) > 1:
            pairs = set(zip(parts, parts[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                joined = tuple(parts[i : i + 2]) == best
                merged.append(parts[i] + parts[i + 1] if joined else parts[i])
                i += 2 if joined else 1
            parts = merged
        return tuple(self.vocab[part] for part in parts)

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no start, end or padding."""
        return [token for word in WORDS.findall(clean(text)) for token in self._word(word)]

    def __call__(self, texts: str | Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """Raises TokenizerError (a ValueError) where a text is too long for the context, unless `truncate` cuts it."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = np.full((len(texts), self.context), self.pad, np.int32)
        for row, text in zip(ids, texts, strict=True):
            tokens = self.encode(text)
            if len(tokens) > self.context - 2:
                if not truncate:
                    room = self.context - 2
                    raise TokenizerError(f"text of {len(tokens)} tokens, {room} fit: {text[:40]!r}...; shorten it")
                tokens = tokens[: self.context - 2]
            row[: len(tokens) + 2] = [self.sos, *tokens, self.eos]
        return ids


# A document can bring the tokenizers library down (it is native code): what it does with one is first seen in a process apart.
TRIAL = """
import sys, tokenizers
made = tokenizers.Tokenizer.from_file(sys.argv[1])
made.no_padding(); made.no_truncation()
for text in ("", ".", "a photo of a damaged object.", "\u00e9 \u4e2d 12-x", "x" * 300):
    made.encode(text); made.encode(text, add_special_tokens=False)
"""


def _try_apart(path: Path) -> None:
    """Raises TokenizerError where reading and using a tokenizer.json fails or crashes; 0.2 s. The package's own are known."""
    if Path(gsclip_jax.__file__).parent / "assets" in path.resolve().parents:
        return
    try:
        done = subprocess.run([sys.executable, "-c", TRIAL, str(path)], capture_output=True, text=True, errors="replace",
                              timeout=120)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TokenizerError(f"{path}: the tokenizer does not come to an end; save it again") from error
    if done.returncode:
        told = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
        raise TokenizerError(f"{path}: cannot read or use the tokenizer ({plain(told, 200)}); save it again")


class WordTokenizer(Tokenizer):
    """The same interface over a `tokenizer.json` that is not CLIP's byte pairs: the embedded CLIP's words, for one.

    Its post-processor must put a start and an end token round every text.
    """

    def __init__(self, path: Path, *, context: int = 77, pad: int = 0):
        import tokenizers

        _try_apart(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{path}: cannot read the tokenizer ({error}); save it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        ends = self._tokenizer.encode("").ids
        dot = self._tokenizer.encode(".", add_special_tokens=False).ids
        if len(ends) != 2 or len(dot) != 1:
            raise TokenizerError(f"{path}: must put one token on either side of a text, and know '.'")
        (self.sos, self.eos), (self.dot,) = ends, dot
        self.context, self.pad, self.vocab_size = context, pad, self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no start, end or padding."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _merges(path: Path) -> list[tuple[str, str]]:
    lines = read_text(path, "tokenizer's merges", TokenizerError).split("\n")
    lines = lines[1:] if lines and "#version" in lines[0] else lines
    pairs = [tuple(line.split()) for line in lines if line.strip()][:OPENAI_MERGES]
    if not all(len(pair) == 2 for pair in pairs):
        raise TokenizerError(f"{path}: no list of merges, two tokens a line; give CLIP's bpe_simple_vocab_16e6.txt.gz")
    return pairs


def _from_pair(vocab: Path, merges: Path) -> tuple[dict[str, int], Merges]:
    return read_json(vocab, "vocabulary", TokenizerError), _merges(merges)


def _from_whole(path: Path) -> tuple[dict[str, int], Merges] | None:
    """Vocabulary and merges of a tokenizer.json, None where it is not CLIP's byte pairs."""
    content = read_json(path, "tokenizer", TokenizerError)
    try:
        model, added = content["model"], {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        vocab = model["vocab"] | added if isinstance(model["vocab"], dict) else {}
        if model.get("type") != "BPE" or SOS not in vocab:
            return None
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        if not all(len(pair) == 2 and all(isinstance(half, str) for half in pair) for pair in pairs):
            raise TypeError("merges that are no pairs of tokens")
        return vocab, pairs
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{path}: broken ({error!r}); save the tokenizer again") from error


def _from_hub(name: str, local: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(name, "merges.txt", local_files_only=local)
        return Path(hf_hub_download(name, "vocab.json", local_files_only=local)).parent
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError) as error:
        kind = type(error).__name__
        raise TokenizerError(
            f"no CLIP vocabulary {name!r}: no such file or directory, and the model hub gave {kind}; "
            "give the path of bpe_simple_vocab_16e6.txt.gz or of a tokenizer directory"
        ) from error


def load_tokenizer(
    source: str | os.PathLike[str] | None = None, *, context: int = 77, pad: int = 0
) -> Tokenizer:
    """A tokenizer (see `Tokenizer`) from where `source` points to:

    a vocabulary file (OpenAI's merges, plain or gzip); a tokenizer.json; a directory with either it or vocab.json and
    merges.txt; a hub name 'owner/name'; None for OpenAI's, if the hub's cache on this machine has it.

    Raises:
      TokenizerError (a ValueError): nothing there, broken files, or a vocabulary that is not CLIP's kind.
    """
    if source is None:
        path = _from_hub("openai/clip-vit-large-patch14-336", local=True)
    else:
        path = Path(source)
        if not path.exists():
            name = os.fspath(source)
            if name.count("/") != 1 or name.startswith((".", "/", "~")):
                raise TokenizerError(f"{path}: no such tokenizer file or directory")
            path = _from_hub(name, local=False)
    whole, pair = path, (path / "vocab.json", path / "merges.txt")
    if path.is_dir():
        whole = path / "tokenizer.json"
        if not whole.is_file() and not all(part.is_file() for part in pair):
            raise TokenizerError(f"{path}: no tokenizer there; it needs vocab.json and merges.txt, or tokenizer.json")
    if all(part.is_file() for part in pair):
        found = _from_pair(*pair)
    elif whole.suffix == ".json":
        found = _from_whole(whole)
        if found is None:
            return WordTokenizer(whole, context=context, pad=pad)
    else:
        merges = _merges(path)
        found = vocabulary(merges), merges
    return Tokenizer(*found, context=context, pad=pad, where=str(path))

"""CLIP's byte-pair tokenizer: from OpenAI's vocabulary file, or from a directory in Hugging Face's layout.

transformers' CLIPTokenizer makes the ids. The text is cleaned here first, so that they are those of OpenAI's
`simple_tokenizer.py`; the rows are padded with 0, as OpenAI's and the released code do.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from gsclip_jax.runtime.documents import read_json, read_text
from gsclip_jax.runtime.keys import WeightsError, listed, plain

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
OPENAI_MERGES = 49152 - 256 - 2  # the vocabulary file holds more merges than CLIP was trained with
# The alphabet of byte pairs in CLIP's order: a visible character for each byte.
LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
# A start or end token, or other signs up to a "<|" that belongs to them: "!<|endoftext|>" is no end token.
MARK = re.compile(rf"{re.escape(SOS)}|{re.escape(EOS)}|(?:[^\w\s]|_)+<\|(?=start|end)")

Merges = Sequence[tuple[str, str]]


class TokenizerError(WeightsError):
    """A vocabulary that cannot be used, or a text that does not fit. The message is one line."""


def vocabulary(merges: Merges) -> dict[str, int]:
    """Token -> id in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    tokens = [*LETTERS, *(letter + WORD_END for letter in LETTERS), *("".join(pair) for pair in merges), SOS, EOS]
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
        wrong = [token for token, number in vocab.items() if type(number) is not int or not 0 <= number < 1 << 24]
        if wrong:
            raise TokenizerError(f"{where}: no CLIP vocabulary, {len(wrong)} tokens without number: {listed(wrong, 4)}")
        needed = [SOS, EOS, *LETTERS, *(letter + WORD_END for letter in LETTERS)]
        needed += ["".join(pair) for pair in merges]
        missing = [token for token in dict.fromkeys(needed) if token not in vocab]
        if missing:
            raise TokenizerError(f"{where}: no CLIP vocabulary, {len(missing)} tokens missing: {listed(missing, 4)}")
        self.sos, self.eos, self.dot = vocab[SOS], vocab[EOS], vocab["." + WORD_END]
        self.context, self.pad, self.vocab_size = context, pad, len(vocab)
        self._tokenizer = _clip_tokenizer(vocab, merges, where)

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no start, end or padding."""
        return self._ids(MARK.sub(r"\g<0> ", clean(text)))

    def _ids(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # half of a surrogate pair
            raise TokenizerError(f"text {ascii(text[:40])} has characters that are no Unicode; write it again") from error

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


def _clip_tokenizer(vocab: Mapping[str, int], merges: Merges, where: str) -> tokenizers.Tokenizer:
    """The native tokenizer in transformers' CLIPTokenizer, for clean text; made without files or network."""
    # Imported here: it takes a second, and most commands need no byte pairs. Without the variable it warns of absent PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    try:
        made = CLIPTokenizer(vocab=dict(vocab), merges=list(merges)).backend_tokenizer
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{where}: no CLIP vocabulary ({plain(str(error), 200)}); save the tokenizer again") from error
    made.normalizer = None  # `clean` has done it; once more would join accents that OpenAI's leaves apart
    return made


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
    if ASSETS in path.resolve().parents:
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
        return self._ids(text)


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
        if not all(isinstance(token, str) for token in added):
            raise TypeError("added tokens that are no text")
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


def load_tokenizer(source: str | os.PathLike[str] | None = None, *, context: int = 77, pad: int = 0) -> Tokenizer:
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

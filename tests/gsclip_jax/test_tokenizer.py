"""Token ids against those recorded from OpenAI's tokenizer, against the tokenizers library, and by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from gsclip_jax.models.tokenizer import EOS, SOS, WORD_END, load_tokenizer, vocabulary
from tests.recorded import Recorded

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]  # as the ids have them
MERGES = [("o", "b"), ("ob", "j"), ("e", "c"), ("ec", "t" + WORD_END), ("obj", "ect" + WORD_END), ("a", "n")]


@pytest.fixture(scope="module")
def recorded(shared_reference) -> Recorded:
    return Recorded(shared_reference)


@pytest.fixture(scope="module")
def openai(recorded):
    return load_tokenizer(recorded.folder / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture
def folder(tmp_path):
    """A small byte-pair vocabulary in Hugging Face's two-file layout."""
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary(MERGES)))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, MERGES)) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", ["tokens", "tokens_extra"])
def test_ids_as_recorded(recorded, openai, name):
    texts = json.loads(recorded.manifest["arrays"][f"d/{name}"]["inputs"])
    ids = openai(texts)
    assert ids.dtype == np.int32
    for text, ours, theirs in zip(texts, ids, recorded.array(f"d/{name}"), strict=True):
        assert np.array_equal(ours, theirs), text


def test_template_ids_as_recorded(recorded, openai):
    """The prompts' template: 12 placeholders, then 'object.' or 'damaged object.'."""
    texts = [" ".join(["X"] * 12) + ending for ending in (" object.", " damaged object.")]
    recorded_ids = recorded.array("e/tokenized")
    assert np.array_equal(openai(texts), recorded_ids[[0, 2]])
    assert (openai.sos, openai.eos, openai.dot, openai.vocab_size) == (49406, 49407, 269, 49408)


def test_merges_by_hand(folder):
    tokenizer = load_tokenizer(folder, context=8)
    byte = {c: i for c, i in vocabulary(MERGES).items() if len(c) == 1}
    n = 512
    assert tokenizer.encode("Object") == [n + 4]  # ob obj + ec ect</w> -> object</w>
    assert tokenizer.encode("an o") == [byte["a"], byte["n"] + 256, byte["o"] + 256]  # 'an' ends the word: no merge
    assert tokenizer.encode("ana") == [n + 5, byte["a"] + 256]
    assert (tokenizer.sos, tokenizer.eos, tokenizer.dot) == (n + 6, n + 7, byte["."] + 256)
    ids = tokenizer(["object", ""])
    assert ids.tolist() == [[n + 6, n + 4, n + 7, 0, 0, 0, 0, 0], [n + 6, n + 7, 0, 0, 0, 0, 0, 0]]


def test_every_layout_gives_the_same_ids_as_the_tokenizers_library(folder, tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.CLIPTokenizer.from_pretrained(str(folder))
    saved = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(str(saved))
    for name in ("vocab.json", "merges.txt"):
        (saved / name).unlink(missing_ok=True)
    plain = tmp_path_factory.mktemp("file") / "merges.txt"
    plain.write_text((folder / "merges.txt").read_text())
    texts = ["a photo of an object.", "Objects, banana-object!", "it's 12 o'clock", "caf\u00e9 \u2014 naïve", "  spaces  "]
    expected = [ids[1:-1] for ids in theirs(texts)["input_ids"]]
    for source in (folder, saved, saved / "tokenizer.json", plain):
        tokenizer = load_tokenizer(source)
        assert [tokenizer.encode(text) for text in texts] == expected, source
        assert (tokenizer.sos, tokenizer.eos) == (theirs.bos_token_id, theirs.eos_token_id)


def test_word_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = {word: i for i, word in enumerate(("<pad>", "<unk>", "<start>", "<end>", ".", "a", "cup"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Punctuation()]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="one token on either side"):
        load_tokenizer(tmp_path)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, context=7)
    assert (tokenizer.sos, tokenizer.eos, tokenizer.dot, tokenizer.vocab_size) == (2, 3, 4, 7)
    assert tokenizer(["A cup.", "unknown"]).tolist() == [[2, 5, 6, 4, 3, 0, 0], [2, 1, 3, 0, 0, 0, 0]]


def test_long_texts_are_refused_or_cut(folder):
    tokenizer = load_tokenizer(folder, context=6)
    with pytest.raises(ValueError, match="text of 5 tokens, 4 fit"):
        tokenizer(["object"] + ["a a a a a"])
    cut = tokenizer("object a a a a", truncate=True)
    assert cut[0, 0] == tokenizer.sos and cut[0, -1] == tokenizer.eos and cut.shape == (1, 6)


def test_special_tokens_in_the_text_are_single(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(f"{SOS} a {EOS}")[0::2] == [tokenizer.sos, tokenizer.eos]


@pytest.mark.parametrize("spoil, told", [
    (lambda f: (f / "vocab.json").write_text("{"), "vocab.json: broken"),
    (lambda f: (f / "merges.txt").write_text("one two three\n"), "no list of merges"),
    (lambda f: (f / "merges.txt").write_text("q q\n"), "1 tokens missing"),
    (lambda f: (f / "merges.txt").write_bytes(b"\x1f\x8b\x00\x00"), "cannot read"),
    (lambda f: (f / "merges.txt").write_text("o bj\n"), "`bj` out of vocabulary"),  # 'obj' is there, but not that half
    (lambda f: (f / "merges.txt").unlink(), "no tokenizer there"),
    (lambda f: ((f / "vocab.json").unlink(), (f / "tokenizer.json").write_text("[]")), "tokenizer.json: broken"),
    (lambda f: ((f / "vocab.json").unlink(), (f / "tokenizer.json").write_text(json.dumps(
        {"model": {"type": "BPE", "vocab": vocabulary([]), "merges": []}, "added_tokens": [{"content": 7, "id": 9}]}))),
     "added tokens that are no text"),
])  # fmt: skip
def test_broken_files_are_told_in_one_line(folder, spoil, told):
    spoil(folder)
    with pytest.raises(ValueError) as caught:
        load_tokenizer(folder)
    assert told in str(caught.value) and "\n" not in str(caught.value)


ODD = [  # text, and the words that OpenAI's code makes of it
    ("", []), ("\x00\n\u3000", []), ("IT'S can't''s", ["it", "'s", "can", "'t", "''", "s"]),
    ("&amp;lt;b&amp;gt; \u2018q\u2019", ["<", "b", ">", "'", "q", "'"]), ("x_y__1234", ["x", "_", "y", "__", "1", "2", "3", "4"]),
    ("\ufb01ne \uff21\uff11", ["fine", "a", "1"]), ("e\u0301\u00bd\u2167", ["\u00e9", "\u00bd", "\u2177"]),
    ("\u0130 \u03a3\u03a3 \u1e9e", ["i", "\u0307", "\u03c3\u03c2", "\u00df"]),
    ("\u03aa\u0301", ["\u03ca", "\u0301"]),  # no composed letter of both in upper case, but one in lower case
    ("\u90e8\u54c1\U0001f527!", ["\u90e8\u54c1", "\U0001f527!"]), ("a\u0301\u0301b\u200d", ["\u00e1", "\u0301", "b", "\u200d"]),
    (f"a{EOS}{EOS}'s", ["a", EOS, EOS, "'s"]), (f"!{EOS}{EOS}", ["!<|", "endoftext", "|><|", "endoftext", "|>"]),
    (f"_{SOS} <|start", ["_<|", "startoftext", "|>", "<|", "start"]), (SOS.upper(), [SOS]), ("a" * 300, ["a" * 300]),
]  # fmt: skip


@pytest.mark.parametrize("text, words", ODD)
def test_words_of_odd_texts(folder, text, words):
    """With merges of ASCII letters alone, so that a word's tokens are its bytes: where it ends is what counts."""
    tokenizer, ids = load_tokenizer(folder), vocabulary(MERGES)
    letters = {byte: letter for letter, byte in zip([c for c in ids if len(c) == 1], BYTES, strict=True)}
    expected = []
    for word in words:
        signs = [word] if word in (SOS, EOS) else [letters[byte] for byte in word.encode()]
        expected += [ids[sign] for sign in signs[:-1]] + [ids[signs[-1] + WORD_END * (len(signs[-1]) == 1)]]
    assert tokenizer.encode(text) == expected


@pytest.mark.parametrize("text", ["\ud800", "a cup\udcff"])
def test_texts_that_are_no_unicode_are_refused(folder, text):
    with pytest.raises(ValueError, match="characters that are no Unicode") as caught:
        load_tokenizer(folder).encode(text)
    assert str(caught.value).isprintable()


ALONE = """
import socket, sys
def refuse(*arguments): raise AssertionError("asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["torch"] = sys.modules["tensorflow"] = None  # as where they are not installed
from gsclip_jax.models.tokenizer import load_tokenizer
assert "transformers" not in sys.modules
print(load_tokenizer(sys.argv[1]).encode("object"))
"""


def test_local_files_need_no_network_and_no_other_framework(folder):
    done = subprocess.run([sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[516]\n", "")


def test_absent_files_are_told(tmp_path):
    with pytest.raises(ValueError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "nothing.txt.gz")


def test_documents_that_bring_the_native_library_down_are_refused(tmp_path, capfd):
    """A start token that is not described: the library's own code panics over it."""
    from gsclip_jax.convert.load import MINI

    document = json.loads((MINI / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert load_tokenizer(tmp_path).encode("a cup") == load_tokenizer(MINI).encode("a cup")
    del document["post_processor"]["special_tokens"]["<start>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="tokenizer.json: cannot read or use the tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).isprintable() and capfd.readouterr().err == ""  # no native traceback either

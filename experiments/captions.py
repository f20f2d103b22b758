"""Sentences for pretraining the embedded CLIP, and its word tokenizer.

A caption names the kind of picture, the condition, the solid and the side it is seen from. The vocabulary is made of the words
that can occur, so that the token ids never depend on which captions were drawn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

PAD, UNKNOWN, START, END, DOT = "<pad>", "<unk>", "<start>", "<end>", "."

SOUND = ("sound", "flawless", "perfect", "intact", "undamaged", "good", "normal")
DAMAGED = ("damaged", "defective", "broken", "faulty", "flawed", "bad", "anomalous")
PICTURES = {
    "render": ("a rendering of", "a photo of", "a picture of", "a grey rendering of", "a view of"),
    "depth": ("a depth map of", "a depth image of", "a depth view of", "a range image of", "a view of"),
}
DEFECTS = {
    "bulge": ("with a bulge", "with a bump", "with a raised spot"),
    "dent": ("with a dent", "with a sink", "with a hollow"),
    "hole": ("with a hole", "with a missing piece", "with an opening"),
    "crack": ("with a crack", "with a groove", "with a scratch"),
    "break": ("with a break", "with a broken part", "with a part cut off"),
    "bend": ("with a bend", "with a bent part", "with a twisted part"),
}
ANY_DEFECT = ("with a defect", "with damage", "with an anomaly", "with a flaw")
NO_DEFECT = ("without defect", "without damage", "without anomaly", "without flaw")
SIDES = ("seen from the front", "seen from the side", "seen from above", "seen from below", "seen from behind")
OBJECTS = ("object", "part", "item", "shape", "solid", "surface")


def vocabulary(categories: tuple[str, ...]) -> list[str]:
    """All words, special tokens first; the solids' names may have several words ('chess pawn')."""
    sentences = [*SOUND, *DAMAGED, *ANY_DEFECT, *NO_DEFECT, *SIDES, *OBJECTS, "a an the"]
    sentences += [s for kinds in (PICTURES, DEFECTS) for options in kinds.values() for s in options]
    sentences += [name.replace("_", " ") for name in categories]
    words = sorted({word for sentence in sentences for word in sentence.lower().split()})
    return [PAD, UNKNOWN, START, END, DOT, *words]


def make_tokenizer(categories: tuple[str, ...]):
    """A word tokenizer (`tokenizers` library) that puts the start and end tokens round a sentence."""
    ids = {word: i for i, word in enumerate(vocabulary(categories))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return tokenizer


class Captioner:
    """Draws captions of views and (sound, damaged) pairs of sentences, as token ids of one length.

    Args:
      tokenizer: of make_tokenizer, or a path to its tokenizer.json.
      length: ids are padded to it.
    """

    def __init__(self, tokenizer, length: int = 16):
        if isinstance(tokenizer, (str, Path)):
            tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer, self.length = tokenizer, length
        self._known: dict[str, np.ndarray] = {}

    def ids(self, sentence: str) -> np.ndarray:
        if sentence not in self._known:
            found = self.tokenizer.encode(sentence).ids
            if len(found) > self.length:
                raise ValueError(f"caption {sentence!r} has {len(found)} tokens, more than {self.length}")
            row = np.zeros(self.length, np.int32)
            row[: len(found)] = found
            self._known[sentence] = row
        return self._known[sentence]

    def caption(self, rng, category: str, defect: str, damaged: int, modality: str) -> np.ndarray:
        """Ids of one sentence that is true of the view."""
        solid = category.replace("_", " ") if rng.random() < 0.8 else rng.choice(OBJECTS)
        return self.ids(self.sentence(rng, modality, solid, damaged, defect))

    def pair(self, rng, category: str) -> np.ndarray:
        """Ids [2,T] of a sound and a damaged sentence that name no kind of defect."""
        about = category.replace("_", " ") if rng.random() < 0.2 else rng.choice(OBJECTS)
        modality = rng.choice(list(PICTURES))
        return np.stack([self.ids(self.sentence(rng, modality, about, damaged, None)) for damaged in (0, 1)])

    def sentence(self, rng, modality: str, solid: str, damaged: int, defect: str | None) -> str:
        picture = rng.choice(PICTURES[modality])
        if damaged:
            named = DEFECTS.get(defect or "", ANY_DEFECT)
            condition = rng.choice(DAMAGED) if rng.random() < 0.7 else ""
            ending = rng.choice(named if rng.random() < 0.5 else ANY_DEFECT)
        else:
            condition, ending = (rng.choice(SOUND) if rng.random() < 0.7 else ""), rng.choice(NO_DEFECT)
        if condition and rng.random() < 0.5:
            ending = ""
        words = f"{picture} a {condition} {solid} {ending}".split()
        return " ".join(words) + " ."

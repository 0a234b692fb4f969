"""wordcount: count the words of a text."""

import collections
import random
import re

ARGUMENTS = {"words": (100_000, 1, 10_000_000)}

_WORD = re.compile(r"\w+")


def run(seed, words):
    dice = random.Random(seed)
    vocabulary = [dice.randbytes(dice.randrange(1, 7)).hex() for _ in range(2000)]
    # Few words are frequent, most are rare, as in a language.
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    text = " ".join(dice.choices(vocabulary, weights, k=words))
    counts = collections.Counter(_WORD.findall(text))
    lines = "\n".join(f"{word} {count}" for word, count in sorted(counts.items()))
    return lines.encode(), {"distinct": len(counts), "bytes": len(text)}

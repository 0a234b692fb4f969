"""json: make a document of about 1 MiB, write it as JSON and read it again."""

import json
import random

ARGUMENTS = {"size_kib": (1024, 1, 65536)}

# What one record takes when written, on average; it only scales the default to about 1 MiB.
_RECORD_BYTES = 166


def record(dice, number):
    return {
        "id": number,
        "name": f"user-{dice.randrange(1 << 32):08x}",
        "scores": [dice.randrange(10_000) for _ in range(8)],
        "active": dice.random() < 0.5,
        "address": {"street": dice.randbytes(8).hex(), "number": dice.randrange(400), "note": None},
    }


def run(seed, size_kib):
    dice = random.Random(seed)
    document = [record(dice, number) for number in range(max(1, size_kib * 1024 // _RECORD_BYTES))]
    text = json.dumps(document)
    if json.loads(text) != document:
        raise RuntimeError("the document changed on its way through JSON")
    return text.encode(), {"bytes": len(text), "records": len(document)}

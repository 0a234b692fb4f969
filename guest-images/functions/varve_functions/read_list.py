"""read-list: read all of a large list that stays in memory from one invocation to the next."""

import random
import zlib

ARGUMENTS = {"size_mib": (128, 1, 16384)}

# The list is the function's state, not its input: it is made once and only read afterwards.
_blocks = []


def run(seed, size_mib):
    while len(_blocks) < size_mib:
        _blocks.append(random.Random(len(_blocks)).randbytes(1 << 20))
    checksum = zlib.crc32(seed.to_bytes(8, "little"))
    for block in _blocks[:size_mib]:
        checksum = zlib.crc32(block, checksum)
    return checksum.to_bytes(4, "little"), {"mib": size_mib}

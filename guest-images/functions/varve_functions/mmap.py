"""mmap: allocate anonymous memory, write every page of it, read it back and let it go."""

import mmap
import random
import zlib

ARGUMENTS = {"size_mib": (64, 1, 16384)}


def run(seed, size_mib):
    size = size_mib << 20
    body = random.Random(seed).randbytes(mmap.PAGESIZE - 8)
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start:start + mmap.PAGESIZE] = start.to_bytes(8, "little") + body
        checksum = 0
        with memoryview(memory) as view:
            for start in range(0, size, 1 << 20):
                with view[start:start + (1 << 20)] as part:
                    checksum = zlib.crc32(part, checksum)
    return checksum.to_bytes(4, "little"), {"pages": size // mmap.PAGESIZE}

"""compression: write a tree of files, archive it, and pack the archive with zlib and LZMA."""

import io
import lzma
import pathlib
import random
import tarfile
import tempfile
import zlib

ARGUMENTS = {"size_kib": (512, 8, 65536)}

_FILE_BYTES = 8192


def plain(info):
    """Archive members carry no trace of when and by whom they were written."""
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o644
    return info


def run(seed, size_kib):
    dice = random.Random(seed)
    words = [dice.randbytes(dice.randrange(2, 9)).hex() for _ in range(500)]
    tar = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=tar, mode="w") as archive:
        for number in range(size_kib * 1024 // _FILE_BYTES):
            path = pathlib.Path(folder, f"{number % 7}", f"{number:05}.txt")
            path.parent.mkdir(exist_ok=True)
            path.write_text(" ".join(dice.choices(words, k=_FILE_BYTES // 12))[:_FILE_BYTES])
            archive.add(path, path.relative_to(folder), filter=plain)
    data = tar.getvalue()
    fast, small = zlib.compress(data, 6), lzma.compress(data, preset=1)
    if zlib.decompress(fast) != data or lzma.decompress(small) != data:
        raise RuntimeError("the archive changed on its way through compression")
    return data + fast + small, {"bytes": len(data), "zlib": len(fast), "lzma": len(small)}

"""ffmpeg: make a short clip from the seed, then turn it grey with a filter of FFmpeg (PyAV).

The clip is stored losslessly and the filter told to be exact, so that the result does not depend on
the vector instructions that FFmpeg finds.
"""

import io
import random

import av
import av.filter

ARGUMENTS = {"width": (160, 16, 1920), "height": (120, 16, 1080), "frames": (24, 1, 600)}

_EXACT = "accurate_rnd+bitexact+full_chroma_int"


def warm():
    run(0, 32, 16, 1)


def textures(seed, width, height, count):
    """Raw RGB frames: a random texture that scrolls by one line a frame."""
    dice = random.Random(seed)
    line = 3 * width
    texture = bytearray(dice.randbytes(line) * height)
    for _ in range(count):
        texture = bytearray(dice.randbytes(line)) + texture[:-line]
        yield bytes(texture)


def store(seed, width, height, frames):
    """A file with the clip, in FFV1."""
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as out:
        stream = out.add_stream("ffv1", rate=24, options={"threads": "1", "flags": "bitexact"})
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for raw in textures(seed, width, height, frames):
            frame = av.VideoFrame(width, height, "rgb24")
            plane = frame.planes[0]
            # FFmpeg pads lines.
            pad = bytes(plane.line_size - 3 * width)
            plane.update(b"".join(raw[at:at + 3 * width] + pad for at in range(0, len(raw), 3 * width)))
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def grey(clip):
    """The clip's frames in grey, one byte a pixel."""
    made = []
    with av.open(io.BytesIO(clip)) as source:
        stream = source.streams.video[0]
        stream.thread_count = 1
        graph = av.filter.Graph()
        first, last = graph.add_buffer(template=stream), graph.add("buffersink")
        scale, gray = graph.add("scale", f"flags={_EXACT}"), graph.add("format", "gray")
        first.link_to(scale)
        scale.link_to(gray)
        gray.link_to(last)
        graph.configure()
        for frame in source.decode(stream):
            graph.push(frame)
            plane = graph.pull().planes[0]
            lines = bytes(plane)
            made.extend(lines[at:at + plane.width] for at in range(0, len(lines), plane.line_size))
    return b"".join(made)


def run(seed, width, height, frames):
    clip = store(seed, width, height, frames)
    made = grey(clip)
    if len(made) != width * height * frames:
        raise RuntimeError(f"{len(made)} bytes were made of {frames} frames of {width}x{height}")
    return made, {"frames": frames, "clip_bytes": len(clip)}

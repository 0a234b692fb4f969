"""ffmpeg: make a short clip from the seed, then turn it grey with a filter.

The clip is stored losslessly and the filter told to be exact, so that the result does not depend on
the vector instructions that ffmpeg finds.
"""

import random
import subprocess

ARGUMENTS = {"width": (160, 16, 1920), "height": (120, 16, 1080), "frames": (24, 1, 600)}

_COMMAND = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-threads", "1", "-filter_threads", "1"]


def ffmpeg(arguments, data):
    done = subprocess.run(_COMMAND + arguments, input=data, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError("ffmpeg: " + done.stderr.decode(errors="replace").strip()[:400])
    return done.stdout


def moving_texture(seed, width, height, count):
    """Raw RGB frames: a random texture that scrolls by one line a frame."""
    dice = random.Random(seed)
    texture = bytearray(dice.randbytes(3 * width) * height)
    line = 3 * width
    for _ in range(count):
        texture[:line] = dice.randbytes(line)
        yield bytes(texture)
        texture = texture[-line:] + texture[:-line]


def run(seed, width, height, frames):
    raw = b"".join(moving_texture(seed, width, height, frames))
    shape = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-framerate", "24", "-i", "pipe:"]
    clip = ffmpeg(shape + ["-c:v", "ffv1", "-threads", "1", "-flags", "bitexact", "-fflags", "bitexact", "-f", "nut", "pipe:"], raw)
    exact = ["-sws_flags", "accurate_rnd+bitexact+full_chroma_int", "-flags", "bitexact", "-threads", "1"]
    grey = ffmpeg(["-f", "nut", "-i", "pipe:", "-vf", "format=gray"] + exact + ["-f", "rawvideo", "pipe:"], clip)
    if len(grey) != width * height * frames:
        raise RuntimeError(f"ffmpeg returned {len(grey)} bytes for {frames} frames of {width}x{height}")
    return grey, {"frames": frames, "clip_bytes": len(clip)}

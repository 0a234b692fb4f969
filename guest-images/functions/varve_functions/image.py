"""image: decode a JPEG that is made from the seed, rotate it, encode it again."""

import io
import random

from PIL import Image, ImageDraw

ARGUMENTS = {"width": (800, 16, 8192), "height": (600, 16, 8192)}


def warm():
    Image.init()


def picture(seed, width, height):
    """A JPEG file of coloured ellipses."""
    dice = random.Random(seed)
    canvas = Image.new("RGB", (width, height), tuple(dice.randbytes(3)))
    draw = ImageDraw.Draw(canvas)
    for _ in range(40):
        x, y = dice.randrange(width), dice.randrange(height)
        w, h = dice.randrange(8, width), dice.randrange(8, height)
        draw.ellipse((x - w // 4, y - h // 4, x + w // 4, y + h // 4), fill=tuple(dice.randbytes(3)))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=90)
    return file.getvalue(), dice.randrange(1, 360)


def run(seed, width, height):
    jpeg, angle = picture(seed, width, height)
    with Image.open(io.BytesIO(jpeg)) as source:
        turned = source.rotate(angle, expand=True)
    out = io.BytesIO()
    turned.save(out, "JPEG", quality=85)
    return turned.tobytes(), {"angle": angle, "jpeg_in": len(jpeg), "jpeg_out": out.tell()}

"""recognition: recognise digits in small images with a neural network (FANN).

The network is made by train.py when the function image is built. The images are drawn from the seed:
digits of a bitmap font, turned, moved and covered with noise. The checksum covers the labels only,
because the last bits of a network's outputs may differ from one CPU to another.
"""

import os
import pathlib
import random

from PIL import Image, ImageDraw, ImageFont

from varve_functions.fann import Network

ARGUMENTS = {"images": (100, 1, 20_000)}
SIDE = 16
DIGITS = 10
MODEL = pathlib.Path(os.environ.get("VARVE_MODEL", pathlib.Path(__file__).parent.parent / "digits.net"))

_font = ImageFont.load_default()
_network = None


def draw(dice, digit):
    """An image of a digit, as numbers from 0 to 1."""
    canvas = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(canvas).text((5 + dice.randrange(-1, 2), 2 + dice.randrange(-1, 2)), str(digit), 255, _font)
    turned = canvas.rotate(dice.randrange(-8, 9))
    return [min(255, light + noise % 64) / 255 for light, noise in zip(turned.tobytes(), dice.randbytes(SIDE * SIDE))]


def label(network, image):
    outputs = network.run(image)
    return outputs.index(max(outputs))


def warm():
    global _network
    _network = Network.load(MODEL, SIDE * SIDE, DIGITS)
    label(_network, [0.0] * (SIDE * SIDE))


def run(seed, images):
    dice = random.Random(seed)
    digits = [dice.randrange(DIGITS) for _ in range(images)]
    labels = [label(_network, draw(dice, digit)) for digit in digits]
    right = sum(one == other for one, other in zip(labels, digits))
    return bytes(labels), {"right": right, "labels": "".join(map(str, labels[:32]))}

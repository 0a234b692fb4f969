"""Makes the network of the function `recognition` when the function image is built.

    train.py OUTPUT

It learns from images that are drawn with fixed seeds, and is tried on others.
"""

import random
import sys

from varve_functions.fann import Network
from varve_functions.recognition import DIGITS, SIDE, draw, label

LAYERS = (SIDE * SIDE, 64, DIGITS)


def main(output):
    dice = random.Random(0)
    samples = []
    for number in range(2000):
        digit = number % DIGITS
        samples.append((draw(dice, digit), [float(digit == place) for place in range(DIGITS)]))
    network = Network.train(LAYERS, samples, epochs=120)
    tries = [number % DIGITS for number in range(500)]
    right = sum(label(network, draw(dice, digit)) == digit for digit in tries)
    if right < 0.9 * len(tries):
        sys.exit(f"train.py: the network recognises only {right} of {len(tries)} images")
    network.save(output)
    print(f"train.py: {right} of {len(tries)} images recognised", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])

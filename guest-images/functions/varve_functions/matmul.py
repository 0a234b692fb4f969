"""matmul: multiply two square matrices with numpy.

The entries are small whole numbers, so that every sum is exact in a double and the result is the
same whatever instructions the BLAS picks.
"""

import random

import numpy

ARGUMENTS = {"size": (384, 1, 8192)}


def warm():
    numpy.ones((8, 8)) @ numpy.ones((8, 8))


def matrix(dice, size):
    return numpy.frombuffer(dice.randbytes(size * size), numpy.uint8).reshape(size, size).astype(numpy.float64)


def run(seed, size):
    dice = random.Random(seed)
    product = (matrix(dice, size) @ matrix(dice, size)).astype(numpy.int64)
    return product.tobytes(), {"trace": int(numpy.trace(product))}

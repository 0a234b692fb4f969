"""pyaes: encrypt and decrypt a message with AES in plain Python."""

import random

import pyaes

ARGUMENTS = {"size_kib": (32, 1, 4096)}


def run(seed, size_kib):
    dice = random.Random(seed)
    key, message = dice.randbytes(32), dice.randbytes(size_kib << 10)
    secret = pyaes.AESModeOfOperationCTR(key).encrypt(message)
    if pyaes.AESModeOfOperationCTR(key).decrypt(secret) != message:
        raise RuntimeError("the message changed on its way through AES")
    return secret, {"bytes": len(secret)}

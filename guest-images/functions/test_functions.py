"""Tests of the sample functions: `python3 -m unittest` in this folder.

A function whose libraries this machine lacks is reported as skipped.
"""

import ctypes.util
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import worker

# Small arguments keep the run short.
CASES = {
    "hello": {}, "read-list": {"size_mib": 2}, "mmap": {"size_mib": 2}, "image": {"width": 64, "height": 48},
    "json": {"size_kib": 16}, "pyaes": {"size_kib": 1}, "chameleon": {"rows": 5, "columns": 3},
    "matmul": {"size": 16}, "ffmpeg": {"width": 32, "height": 16, "frames": 3}, "compression": {"size_kib": 64},
    "recognition": {"images": 20}, "pagerank": {"vertices": 100, "degree": 3}, "wordcount": {"words": 500},
}
LIBRARIES = {"image": "PIL", "pyaes": "pyaes", "chameleon": "chameleon", "matmul": "numpy", "ffmpeg": "av",
             "recognition": "PIL", "pagerank": "igraph"}


class Functions(unittest.TestCase):
    def load(self, name):
        library = LIBRARIES.get(name)
        if library and importlib.util.find_spec(library) is None:
            self.skipTest(f"no {library}")
        if name == "recognition":
            if ctypes.util.find_library("floatfann") is None:
                self.skipTest("no libfann2")
            self.train()
        return worker.load(name)

    def train(self):
        from varve_functions import recognition
        import train
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        recognition.MODEL = pathlib.Path(folder.name, "digits.net")
        train.main(recognition.MODEL)

    def check(self, name):
        module = self.load(name)

        def checksum(seed):
            reply = worker.invoke(module, {"seed": seed, "args": CASES[name]})
            self.assertTrue(reply["ok"])
            return reply["checksum"]

        first = checksum(1)
        self.assertEqual(first, checksum(1), "the same seed must give the same result")
        self.assertEqual(len({first, checksum(2), checksum(3), checksum(9)}), 4, "each seed must give another")
        self.assertEqual(first, checksum(1), "other invocations must leave no trace")

    def test_every_function_has_a_case(self):
        self.assertEqual(set(CASES), set(worker.NAMES))
        self.assertEqual(len(worker.NAMES), 13)


for _name in worker.NAMES:
    setattr(Functions, "test_" + _name.replace("-", "_"), lambda self, name=_name: self.check(name))


class Worker(unittest.TestCase):
    def talk(self, name, *lines):
        command = [sys.executable, str(pathlib.Path(worker.__file__)), name]
        done = subprocess.run(command, input="".join(line + "\n" for line in lines), capture_output=True, text=True)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def test_serves_several_requests(self):
        code, replies = self.talk("hello", '{"seed": 1}', '{"seed": 2}', '{"seed": 1}')
        self.assertEqual(code, 0)
        self.assertTrue(replies[0]["ready"])
        self.assertEqual(replies[1]["checksum"], replies[3]["checksum"])
        self.assertNotEqual(replies[1]["checksum"], replies[2]["checksum"])

    def test_bad_requests_are_answered_and_survived(self):
        bad = ["{", "[]", "{}", '{"seed": -1}', '{"seed": true}', '{"seed": 1, "args": {"size_mib": 0}}',
               '{"seed": 1, "args": {"size": 1}}', '{"seed": 1, "args": [1]}', '{"seed": 18446744073709551616}']
        code, replies = self.talk("mmap", *bad, '{"seed": 1, "args": {"size_mib": 1}}')
        self.assertEqual(code, 0)
        self.assertEqual([reply["ok"] for reply in replies[1:]], [False] * len(bad) + [True])
        self.assertIn("from 1 to 16384", replies[6]["error"])
        self.assertIn("this function takes: size_mib", replies[7]["error"])

    def test_unknown_function(self):
        code, replies = self.talk("nothing")
        self.assertEqual(code, 1)
        self.assertIn("unknown function 'nothing'", replies[0]["error"])


if __name__ == "__main__":
    unittest.main()

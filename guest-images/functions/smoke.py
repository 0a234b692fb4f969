"""Runs every function once and prints the checksums as JSON: `smoke.py SEED`.

The image build runs it inside the finished image; a guest's answer for the same seed must have the
same checksum.
"""

import json
import pathlib
import subprocess
import sys

import worker


def checksum(name, seed):
    """Ask a worker of its own, as the agent does."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name("worker.py")), name]
    done = subprocess.run(command, input=json.dumps({"seed": seed}) + "\n", capture_output=True, text=True)
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    if len(replies) != 2 or not replies[1]["ok"]:
        sys.exit(f"smoke.py: {name} failed: {replies}\n{done.stderr}")
    return replies[1]["checksum"]


def main():
    seed = int(sys.argv[1])
    json.dump({name: checksum(name, seed) for name in worker.NAMES}, sys.stdout, indent=2)


if __name__ == "__main__":
    main()

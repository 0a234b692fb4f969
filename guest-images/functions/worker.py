"""Serves one sample function to the agent, over pipes, one line of JSON each way.

    worker.py NAME

The module is imported and warmed once; a first line `{"ready": true, ...}` says so. Each request is
`{"seed": 7, "args": {...}}`, each reply carries the SHA-256 of what the function made. What a
function's module must offer stands in docs/guest-images.md. Starting workers, time limits and
restarts are the agent's business.
"""

import hashlib
import importlib
import json
import os
import sys
import time

NAMES = ("hello", "read-list", "mmap", "image", "json", "pyaes", "chameleon", "matmul", "ffmpeg",
         "compression", "recognition", "pagerank", "wordcount")

# Results and timings must not depend on the number of CPUs.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"


class BadRequest(Exception):
    """The request is wrong; the text says how to put it right."""


def load(name):
    """Import and warm the module of function `name`."""
    if name not in NAMES:
        raise BadRequest(f"unknown function {name!r}; there are: {', '.join(NAMES)}")
    module = importlib.import_module("varve_functions." + name.replace("-", "_"))
    if hasattr(module, "warm"):
        module.warm()
    return module


def arguments(module, given):
    """Complete and check arguments against the module's ARGUMENTS: name -> (default, least, most)."""
    if not isinstance(given, dict):
        raise BadRequest("args must be an object")
    known = getattr(module, "ARGUMENTS", {})
    unknown = sorted(set(given) - set(known))
    if unknown:
        allowed = ", ".join(known) or "none"
        raise BadRequest(f"unknown argument {unknown[0]!r}; this function takes: {allowed}")
    complete = {}
    for name, (default, least, most) in known.items():
        value = given.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise BadRequest(f"argument {name!r} must be an integer from {least} to {most}, not {value!r}")
        complete[name] = value
    return complete


def invoke(module, request):
    """Run one request; `micros` is the time spent in the function itself."""
    seed = request.get("seed") if isinstance(request, dict) else None
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise BadRequest(f"seed must be an integer from 0 to 2^64-1, not {seed!r}")
    args = arguments(module, request.get("args") or {})
    start = time.perf_counter_ns()
    made, facts = module.run(seed, **args)
    micros = (time.perf_counter_ns() - start) // 1000
    return {"ok": True, "checksum": hashlib.sha256(made).hexdigest(), "micros": micros, "facts": facts}


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: worker.py NAME; one of: " + " ".join(NAMES))
    # A stray print of some library must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(value):
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    start = time.perf_counter_ns()
    try:
        module = load(sys.argv[1])
    except Exception as error:
        reply({"ready": False, "error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    reply({"ready": True, "micros": (time.perf_counter_ns() - start) // 1000})
    for line in sys.stdin:
        try:
            reply(invoke(module, json.loads(line)))
        except BadRequest as error:
            reply({"ok": False, "error": str(error)})
        except Exception as error:
            reply({"ok": False, "error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()

"""Runs `moe-pack` many times for one start of Python: everything is imported once, and each run is a fork.

It is executed with the injector preloaded, takes one request a line on stdin (JSON) and answers each on stdout when
the run has ended, or stopped. A forked run is the program from its `main` on; that an executed one makes the same calls
is a test of its own (test_injector.py).
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import signal
import sys
import time
from typing import Any

from moepack.convert.cli import main

INJECTOR = ctypes.CDLL(None)


def warm_up() -> None:
    """Import what a command line imports only when it is used, by one that is refused; start no thread."""
    sys.argv = ["moe-pack", "build", "/nowhere", "/nowhere/pack"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        main()
    gc.collect()
    gc.freeze()  # a fork shares what nobody touches


def start(request: dict[str, Any]) -> int:
    """A forked `moe-pack`, armed as the request says; its process."""
    process = os.fork()
    if process:
        return process
    try:
        run(request)
    except SystemExit as leaving:
        sys.stdout.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
    finally:
        os._exit(99)


def run(request: dict[str, Any]) -> None:
    os.setsid()
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["moe-pack", *request["arguments"]]
    INJECTOR.crash_arm(
        ctypes.c_long(request["at"]), request["action"], request["error"], os.fsencode(request["log"] or "")
    )
    main()
    raise SystemExit(0)


def wait(process: int, seconds: float | None) -> dict[str, Any]:
    """How the process ended or stopped; killed after `seconds`, unless that is None."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, os.WUNTRACED)
    stopped = os.WIFSTOPPED(status)
    return {"process": process, "stopped": stopped, "code": None if stopped else os.waitstatus_to_exitcode(status)}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "goes_on" in request:
        os.kill(request["goes_on"], request["signal"])
        return wait(request["goes_on"], None)
    if "imports" in request:
        return {"imported": [importlib.import_module(name).__name__ for name in request["imports"]]}
    return wait(start(request), request["kill_after"])


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()

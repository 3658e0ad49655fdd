"""Fuzz every parser and every native kernel for a while: `run.py [SECONDS_OF_EACH] [NAME...]`; `make fuzz`.

Prints how many inputs each was given, and stops with the first input that breaks a promise, which is kept beside the
corpus under build/fuzz/. docs/security.md holds the figures of the last run.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import seeds

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build/fuzz"
COMPILER = os.environ.get("CLANGXX", "clang++-19")
NATIVE = {"matmul": "runtime/kernels/cpu", "quantize": "quantize/native"}
PARSERS = ("manifest", "sealed", "header", "checkpoint", "config", "calibration", "recipe", "tokenizer", "template")
KERNELS = ("matmul", "quantize")
MEMORY_MIB = 512  # of the whole process, its imports and its instrumentation included
SECONDS_OF_ONE = 30  # an input may take, instrumented, on a busy machine


def main(seconds: int, names: list[str]) -> int:
    """The exit code: 0 if all ran and nothing was found."""
    failed = 0
    for name in names:
        if lacking := _lacking(name):
            print(f"{name}: not run, there is no {lacking}", flush=True)
            failed = 1
            continue
        corpus = BUILD / name
        options = [f"-max_total_time={seconds}", f"-timeout={SECONDS_OF_ONE}", f"-rss_limit_mb={MEMORY_MIB}"]
        if name in KERNELS:
            corpus.mkdir(parents=True, exist_ok=True)
            command = [str(_kernel_driver(name)), *options]
        else:
            seeds.write(corpus, name)
            command = [sys.executable, str(HERE / "parsers.py"), name, *options, "-max_len=8192"]
        failed |= _fuzz(name, [*command, "-print_final_stats=1", f"-artifact_prefix={BUILD}/{name}-", str(corpus)])
    return failed


def _fuzz(name: str, command: list[str]) -> int:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    print(
        f"{name}: {int(tried[1]):,} inputs" if tried else f"{name}: no inputs",
        f"coverage {(covered or ['?'])[-1]}",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:])
    return int(done.returncode != 0)


def _lacking(name: str) -> str | None:
    """What a target needs and this machine has not."""
    if name in KERNELS:
        return None if shutil.which(COMPILER) else f"{COMPILER} (with compiler-rt; CLANGXX names another)"
    return None if find_spec("atheris") else "atheris (make fuzz and make trust install it)"


def _kernel_driver(name: str) -> Path:
    """The driver, built anew if a source is younger."""
    driver = BUILD / f"{name}-driver"
    sources = [*HERE.glob("*.*"), *(ROOT / NATIVE[name]).iterdir()]
    if not driver.exists() or driver.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        subprocess.run(["sh", str(HERE / "build.sh"), name, str(driver)], check=True)
    return driver


if __name__ == "__main__":
    chosen = sys.argv[2:] or [*PARSERS, *KERNELS]
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 60, chosen))

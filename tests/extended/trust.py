"""Rerun what docs/trust.md rests on, as far as 30 minutes allow, and print how many cases each promise has.

`make trust`. Longer work has its own targets: `make crash`, `make emulated`, `make scale`, and `make fuzz`.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISES = {  # in the order of docs/trust.md
    "integrity": [
        "tests/manifests/test_bit_flips.py",
        "tests/manifests/test_verify.py",
        "tests/manifests/test_parts.py",
        "tests/manifests/test_scope.py",
        "tests/runtime/test_faults.py",
        "tests/runtime/test_confirmation.py",
    ],
    "reproducible bytes": [
        "tests/convert/test_pipeline.py",
        "tests/convert/test_proving.py",
        "tests/convert/test_locks.py",
        "tests/convert/test_sources.py",
        "tests/quantize/test_quantize_bytes.py",
        "tests/quantize/test_quantize_refusals.py",
        "tests/test_golden.py",
        "tests/test_reproducible.py",
    ],
    "crash safety": ["tests/crash", "tests/layout/test_crash.py", "tests/test_writes.py"],
    "hostile input": [
        "tests/hostile",
        "tests/manifests/test_manifest.py",
        "tests/manifests/test_rules.py",
        "tests/layout/test_tensorfile.py",
        "tests/convert/test_bad_checkpoints.py",
        "tests/runtime/test_template.py",
    ],
    "a server's limits": ["tests/runtime/server/test_manners.py", "tests/runtime/server/test_soak.py"],
    "signatures": ["tests/convert/test_signing.py", "tests/convert/test_provenance.py"],
    "reports and CI": ["tests/convert/test_schemas.py", "tests/test_action.py", "tests/test_exit_codes.py"],
}
MORE = {  # longer than in the tests, shorter than by their own targets
    "crash": ["tests/extended/crash.py"],
    "fuzz": ["tests/extended/fuzz/run.py", "15"],
}
CRASH_PARTS = "calls,kills,failures,power,random,repair,lock,sign"


def main() -> int:
    """The exit code: 0 if all promises are kept."""
    failed = [name for name, paths in PROMISES.items() if not _tests(name, paths)]
    failed += [name for name, command in MORE.items() if not _more(name, command)]
    print(f"not kept: {', '.join(failed)}" if failed else "all kept")
    return int(bool(failed))


def _tests(name: str, paths: list[str]) -> bool:
    start = time.monotonic()
    done = _run([sys.executable, "-m", "pytest", *paths], capture=True)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout)
    print(f"{name:20} {', '.join(counts)}, {time.monotonic() - start:.0f} s", flush=True)
    if done.returncode:
        print(done.stdout[-4000:])
    return done.returncode == 0


def _more(name: str, command: list[str]) -> bool:
    print(f"{name}:", flush=True)
    return _run([sys.executable, *command], capture=False).returncode == 0


def _run(command: list[str], *, capture: bool) -> subprocess.CompletedProcess[str]:
    parts = ["env", f"PYTHONPATH={ROOT / 'tests'}", f"PARTS={CRASH_PARTS}"]
    return subprocess.run([*parts, *command], cwd=ROOT, capture_output=capture, text=True)


if __name__ == "__main__":
    sys.exit(main())

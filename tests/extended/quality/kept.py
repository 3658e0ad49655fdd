"""What `make quality` keeps: files and packs, each beside a note of how it was made, and made anew when that differs.

A note, NAME.made.json, has the command, the digest of every file it read, and the code's commit. Another commit alone
makes nothing anew, for that takes hours: it is said, and --fresh is there.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def keep(target: Path, command: Sequence[object], inputs: Sequence[Path], make: Callable[[], object]) -> None:
    """Have `make` make `target`, unless it is there and came of the same command and inputs."""
    note = target.with_name(f"{target.name}.made.json")
    wanted = {"command": list(map(str, command)), "inputs": {str(path): digest(path) for path in inputs}}
    found = json.loads(note.read_text()) if note.exists() and target.exists() else {}
    if wanted.items() <= found.items():
        _say_of_what_code(target, found)
        return
    note.unlink(missing_ok=True)  # first: what is interrupted from here on is made anew
    _remove(target)
    make()
    note.write_text(json.dumps({**wanted, "code": code()}, indent=1))


def digest(path: Path) -> str:
    """Of a file's bytes, or of all names and bytes in a folder."""
    if path.is_dir():
        inside = [(str(each.relative_to(path)), digest(each)) for each in sorted(path.rglob("*")) if each.is_file()]
        return hashlib.blake2b(json.dumps(inside).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def code() -> str:
    """The commit of this code, marked if something was changed since; "unknown" outside of a repository."""
    command = ("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _say_of_what_code(target: Path, note: dict[str, Any]) -> None:
    if note.get("code") != code():
        print(f"{target} is kept; it was made by {note.get('code')}, and this is {code()}", file=sys.stderr)


def _remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)

"""`make bench`: measure parts side by side with peers, keep them, and write docs/performance.md from all that is kept.

PARTS=decode,prefill picks some; LLAMA_CPP and IK_LLAMA_CPP name build directories of llama.cpp and ik_llama.cpp, whose
rows are missing otherwise. Everything is kept under build/bench: models, packs and each part's figures as JSON.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

from extended.performance import machine, page
from extended.performance.parts import DEFAULT, PARTS, Peers
from extended.performance.series import Series, keep, kept
from extended.performance.subjects import PLACE, ROOT, THREADS
from extended.quality.kept import code

KEPT = PLACE / "figures"


def chosen() -> list[str]:
    """The parts that PARTS names; ends the program for one that does not exist."""
    names = [name for name in os.environ.get("PARTS", "").split(",") if name] or DEFAULT
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f"PARTS: there is no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return names


def versions(peers: Peers) -> dict[str, str]:
    """Of everyone that was compared."""
    found = {name: importlib.metadata.version(name) for name in ("moepack", "torch", "transformers")}
    programs = {"llama.cpp": peers.llama and peers.llama.programs / "llama-bench"}
    programs["ik_llama.cpp"] = peers.ik and peers.ik / "bin" / "llama-cli"
    return found | {name: version(program) for name, program in programs.items() if program}


def version(program: Path) -> str:
    """What a program of a peer says of its build."""
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version: (.+)", said.stdout + said.stderr)
    return found[1] if found else "unknown"


def measured(name: str, peers: Peers) -> list[Series]:
    """A part's series; ends the program with one sentence if a contender does not get to its end."""
    try:
        return PARTS[name](peers)
    except subprocess.SubprocessError as error:
        sys.exit(f"{name}: {error}")


def main() -> None:
    """Measure, keep, and write the page and its picture."""
    peers = Peers.named()
    for name in chosen():
        print(f"== {name}", file=sys.stderr)
        keep(KEPT / f"{name}.json", measured(name, peers), code())
    parts = {name: kept(KEPT / f"{name}.json") for name in PARTS}
    facts = page.Facts(machine.description(THREADS), versions(peers), THREADS)
    (ROOT / "docs" / "performance.md").write_text(page.render(facts, parts), encoding="utf-8")
    if parts["decode"]:
        page.draw(parts, ROOT / "docs" / page.PICTURE)


if __name__ == "__main__":
    main()

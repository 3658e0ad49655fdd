"""A Debian userland for arm64, unpacked in a folder: what emulated cells run in, and what they are compiled against.

Needs apt and dpkg-deb of a Debian machine, no rights: packages come from where its apt looks, as signed ones, into
lists and a cache of our own. It does not know what runs it.
"""

import os
import subprocess
from pathlib import Path

PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libpython3.11-dev", "libc6-dev", "libstdc++6", "libatomic1")
TAGS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in (17, 24, 26, 27, 28, 31, 34, 35)))
CONFIG = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
Dir::State "{place}/state";
Dir::State::status "{place}/state/status";
Dir::Cache "{place}/cache";
Debug::NoLocking "true";
"""


def unpack(place: Path) -> Path:
    """The userland's root, below `place`; made if it is not there. Raises CalledProcessError."""
    root = place / "root"
    if (root / "done").exists():
        return root
    for folder in ("state/lists/partial", "cache/archives/partial", "root"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "state/status").touch()
    (place / "apt.conf").write_text(CONFIG.format(place=place))
    env = os.environ | {"APT_CONFIG": str(place / "apt.conf")}
    for command in (["update"], ["install", "--download-only", "--yes", *PACKAGES]):
        subprocess.run(["apt-get", "--quiet=2", *command], env=env, check=True, stdout=subprocess.DEVNULL)
    for package in sorted((place / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    (root / "done").touch()
    return root


def wheels(pip: list[str | Path], target: Path, wanted: list[str]) -> None:
    """Install wheels of `wanted` for the userland's Python into a folder of their own. Raises CalledProcessError."""
    platforms = [f"--platform={tag}_aarch64" for tag in TAGS]
    exact = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *platforms]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "--target", target, *exact, *wanted], check=True)

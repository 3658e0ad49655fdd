"""`moe-pack`, or `python -m moepack.convert`: an interrupt while modules are imported ends it as any later one does."""

import sys

from ..manifests.errors import INTERRUPTED_EXIT_CODE


def main() -> None:
    """The console script."""
    try:
        from .cli import main as run  # half a second of imports
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(INTERRUPTED_EXIT_CODE)
    run()


if __name__ == "__main__":
    main()

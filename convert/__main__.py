"""`moe-pack`, or `python -m moepack.convert`: an interrupt while modules are imported ends it as any later one does."""

from ..manifests.interrupt import leaving_at_once


def main() -> None:
    """The console script."""
    with leaving_at_once():
        from .cli import main as run  # half a second of imports
    run()


if __name__ == "__main__":
    main()

"""Numbers of bytes for a sentence; how people write them, `manifests.quantities` reads."""

from ..manifests.quantities import UNITS, parse_size

__all__ = ["UNITS", "megabytes", "parse_size"]


def megabytes(size: float) -> str:
    """A size in MB (10^6 bytes), or GB (10^9) from one up, for a sentence; in bytes if 0.0 MB would not be true."""
    if 0 < size < 50_000:
        return f"{size:.0f} bytes"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

"""What a session's state depends on besides its tokens: nothing of another identity may be continued from."""

from blake3 import blake3

from ... import __version__
from ..engine import Engine


def identity(root: str, engine: Engine) -> bytes:
    """The digest of a pack (by its own digest), K, what computes, how exactly, and which version."""
    facts = (root, engine.experts_per_token, type(engine.backend).__name__, engine.options.exact, __version__)
    return blake3("\0".join(map(str, facts)).encode()).digest()

"""Digests that tell which model and which tokenizer statistics belong to."""

from pathlib import Path

from ...manifests import canonical, digest
from ...manifests.errors import UsageError
from ...manifests.schema import Model
from ..checkpoint import TOKENIZER, Checkpoint
from ..fingerprint import fingerprint


def model_digest(checkpoint: Checkpoint, model: Model) -> str:
    """BLAKE3 of a model's geometry and of its checkpoint's fingerprint: names, sizes, headers and samples of weights.

    So the same model in another encoding is another one, as it is for activations.
    """
    return digest.of_bytes(canonical.encode({"fingerprint": fingerprint(checkpoint), "model": model})).hex()


def tokenizer_digest(checkpoint: Checkpoint) -> str:
    """BLAKE3 of the checkpoint's tokenizer.json. Raises UsageError if it has none."""
    require_tokenizer(checkpoint)
    return digest.of_file(_tokenizer(checkpoint), follow_links=True)


def require_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise UsageError if the checkpoint has no tokenizer.json."""
    if not _tokenizer(checkpoint).is_file():
        raise UsageError(f"{checkpoint.origin.directory} has no {TOKENIZER}; put the model's own beside config.json")


def _tokenizer(checkpoint: Checkpoint) -> Path:
    return checkpoint.origin.directory / TOKENIZER

"""Reading a signature's bundle, which nobody has judged yet: bounded, strict in what is used, blind to the rest."""

import base64
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..manifests import canonical
from ..manifests.errors import CorruptInputError, UnsupportedError
from ..manifests.files import read_small

MAX_BUNDLE_BYTES = 4 * 1024 * 1024  # a bundle of 4096 layers has 1.2 MB
PREDICATE = "https://model_signing/signature/v1.0"
PAYLOAD = "application/vnd.in-toto+json"


class _Resource(Struct):
    name: str
    algorithm: str
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class _Serialization(Struct):
    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: list[str] = []


class _Predicate(Struct):
    serialization: _Serialization
    resources: Annotated[list[_Resource], Meta(min_length=1, max_length=8192)]


class _Statement(Struct):
    predicateType: str  # noqa: N815
    predicate: Any


class _Envelope(Struct):
    payload: str
    payloadType: str  # noqa: N815
    signatures: Annotated[list[Any], Meta(min_length=1, max_length=1)]


class _Bundle(Struct):
    mediaType: str  # noqa: N815
    verificationMaterial: dict[str, Any]  # noqa: N815
    dsseEnvelope: _Envelope  # noqa: N815


def signed_list(bundle: Path) -> dict[str, str]:
    """The SHA-256 of every file, by name, that a bundle says it signs, before anybody has judged the signature.

    Raises CorruptInputError for what is no such bundle, UnsupportedError for one that signs otherwise.
    """
    content = read_small(bundle, MAX_BUNDLE_BYTES, follow_links=True)
    try:
        envelope = msgspec.convert(canonical.decode(content, str(bundle)), _Bundle).dsseEnvelope
        payload = base64.b64decode(envelope.payload, validate=True)
        statement = msgspec.convert(canonical.decode(payload, f"{bundle}'s statement"), _Statement)
        if (envelope.payloadType, statement.predicateType) != (PAYLOAD, PREDICATE):
            raise UnsupportedError(f"{bundle} signs no list of a model's files, or one of another version (not 1.0)")
        predicate = msgspec.convert(statement.predicate, _Predicate)
    except (msgspec.ValidationError, ValueError) as error:
        raise CorruptInputError(f"{bundle} is not a bundle of a model's signature: {error}") from error
    _require_whole(bundle, predicate)
    return {resource.name: resource.digest for resource in predicate.resources}


def _require_whole(bundle: Path, predicate: _Predicate) -> None:
    how = predicate.serialization
    algorithms = {resource.algorithm for resource in predicate.resources} | {how.hash_type}
    if how.method != "files" or how.allow_symlinks or algorithms != {"sha256"}:
        raise UnsupportedError(f"{bundle} does not name whole files by SHA-256; sign the pack again with moe-pack sign")
    if len({resource.name for resource in predicate.resources}) < len(predicate.resources):
        raise CorruptInputError(f"{bundle} names a file twice")

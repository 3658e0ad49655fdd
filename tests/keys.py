"""Key pairs to sign with, made anew for each test run."""

from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Keys(NamedTuple):
    private: Path
    public: Path


def keys_in(folder: Path, curve: ec.EllipticCurve | None = None) -> Keys:
    folder.mkdir(parents=True)
    key = ec.generate_private_key(curve or ec.SECP256R1())
    return written(folder, key)


def written(folder: Path, key: Any) -> Keys:
    private, public = folder / "private.pem", folder / "public.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return Keys(private, public)

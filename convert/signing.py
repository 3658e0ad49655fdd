"""Signatures of packs: OpenSSF Model Signing bundles, made and judged by the library `model-signing`.

A bundle signs the list of a pack's files, manifest included, with their SHA-256. The library hashes nothing: the list
is the manifest's own SHA-256 and the pack's SHA256SUMS. Signing verifies every byte against both first; judging reads
the manifest only, and a verification, that always runs beside it, holds the list against all that it reads. Knows
nothing of who owns a key.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from ..layout.atomic import replace
from ..layout.checking import check
from ..manifests import names, sums
from ..manifests.errors import (
    CorruptInputError,
    MismatchError,
    MoepackError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from ..manifests.files import Folder, read_small, require_there
from ..manifests.manifest import Sealed, read_sealed, require_same_seal
from ..manifests.progress import Progress
from ..manifests.report import Report, require_intact
from ..manifests.schema import Digest
from .bundle import signed_list
from .plan import require_new

if TYPE_CHECKING:
    from model_signing import hashing, manifest, signing, verifying

SUFFIX = ".sig"
MAX_KEY_BYTES = 64 * 1024
KEYS = "EC P-256, P-384 or P-521, PEM"


class Signer(Protocol):
    """Who signs: gives the library's configuration its key."""

    def prepare(self, config: "signing.Config") -> None:
        """Raises UsageError for a key that is not there, CorruptInputError for one that cannot be used."""

    def __str__(self) -> str: ...


class Judge(Protocol):
    """Whose signature is expected."""

    def prepare(self, config: "verifying.Config") -> None:
        """Raises UsageError for a key that is not there, CorruptInputError for one that cannot be used."""

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class KeyFile:
    """A private key to sign with, or a public one to judge by, in a PEM file."""

    path: Path

    def prepare(self, config: Any) -> None:
        """Give the key to a configuration of either kind."""
        require_there(self.path)
        read_small(self.path, MAX_KEY_BYTES, follow_links=True)
        private = hasattr(config, "use_elliptic_key_signer")
        try:
            if private:
                config.use_elliptic_key_signer(private_key=self.path)
            else:
                config.use_elliptic_key_verifier(public_key=self.path)
        except Exception as error:  # the library promises no types
            kind = "an unencrypted private" if private else "a public"
            raise CorruptInputError(f"{self.path} is not {kind} key that can be used ({KEYS})") from error

    def __str__(self) -> str:
        return f"the key {self.path}"


@dataclass(frozen=True)
class Keyless:
    """Signing through Sigstore, which needs the network and an identity there."""

    def prepare(self, config: "signing.Config") -> None:
        """Let the library ask for an identity, or take the one of a CI run."""
        config.use_sigstore_signer(use_ambient_credentials=True)

    def __str__(self) -> str:
        return "an identity that Sigstore knows"


@dataclass(frozen=True)
class Identity:
    """Who signed through Sigstore, and who vouches for that identity."""

    name: str
    issuer: str

    def prepare(self, config: "verifying.Config") -> None:
        """Fetch Sigstore's roots of trust and expect this identity."""
        config.use_sigstore_verifier(identity=self.name, oidc_issuer=self.issuer)

    def __str__(self) -> str:
        return f"{self.name} (by {self.issuer})"


class Signed(Struct, frozen=True):
    """A signature that was made, or found good: of which pack, in which file, over how many files."""

    pack: str
    pack_digest: Digest
    signature: str
    by: str
    files: int


def beside(pack: Path) -> Path:
    """Where the bundle of a pack lies unless told otherwise: beside it, since it cannot lie in it."""
    path = pack.resolve()
    return path.with_name(path.name + SUFFIX)


def require_beside(out: Path, pack: Path) -> None:
    """Raise UsageError if `out` would be a file of the pack."""
    if pack.resolve() in out.resolve().parents:
        raise UsageError(f"{out} lies in the pack, where nothing else may; choose another place")


def sign(pack: Path, signer: Signer, out: Path, *, threads: int, progress: Progress) -> Signed:
    """Verify every byte of `pack` by all its digests, and write the bundle `out`.

    Raises MismatchError, and writes nothing, if the pack is not intact.
    """
    _require_library()
    require_new(out)
    require_beside(out, pack)
    config = _prepared_signer(signer)
    checked = check(pack, threads=threads, progress=progress)
    _require_signable(checked, pack)
    sealed, listed = _listed(pack)
    require_same_seal(pack, checked.pack_digest, sealed.pack_digest)
    content = _signature(config, _as_library_manifest(pack.resolve().name, listed), pack)
    replace(out, content)
    return Signed(str(pack), sealed.pack_digest, str(out), str(signer), len(listed))


def judge(pack: Path, bundle: Path, by: Judge) -> Signed:
    """That `bundle` is a signature by `by` of the pack's list of files: of its bytes only as far as they are its.

    Raises MismatchError if it is by somebody else or of something else, CorruptInputError if it is no bundle.
    """
    _require_library()
    from model_signing import verifying

    sealed, listed = _listed(pack)
    signed = signed_list(bundle)
    config = verifying.Config()  # type: ignore[no-untyped-call]
    try:
        by.prepare(config)
        config.set_hashing_config(_known(_as_library_manifest(pack.name, listed)))
        with redirect_stdout(sys.stderr):  # the library prints warnings, and stdout is for data
            config.verify(pack, bundle)
    except MoepackError:
        raise
    except Exception as error:
        raise _refusal(error, pack, bundle, by, _difference(signed, listed)) from error
    if signed != listed:  # the library has compared too, but reads the bundle itself and what it hashes is ours
        raise MismatchError(f"{bundle} is a signature of another pack than {pack}: {_difference(signed, listed)}")
    return Signed(str(pack), sealed.pack_digest, str(bundle), str(by), len(listed))


def _require_signable(checked: Report, pack: Path) -> None:
    try:
        require_intact(checked, pack)
    except MoepackError as error:
        raise type(error)(f"{error} ({checked.findings[0].sentence}); nothing was signed") from None


def _refusal(error: Exception, pack: Path, bundle: Path, by: Judge, difference: str) -> MoepackError:
    from cryptography.exceptions import InvalidSignature
    from sigstore.errors import Error as SigstoreError
    from sigstore.errors import VerificationError

    if isinstance(error, InvalidSignature | VerificationError) or "Key mismatch" in str(error):
        return MismatchError(f"{bundle} was not signed by {by}, or was changed since")
    if isinstance(error, SigstoreError | OSError):
        return StorageError(f"{bundle} cannot be judged: Sigstore's roots of trust cannot be fetched ({error})")
    if difference:
        return MismatchError(f"{bundle} is a signature of another pack than {pack}: {difference}")
    return CorruptInputError(f"{bundle} is not a bundle that can be judged: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _require_library() -> None:
    try:
        import model_signing  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "signatures need the library model-signing; install it with pip install 'moepack[sign]'"
        ) from error


def _prepared_signer(signer: Signer) -> "signing.Config":
    from model_signing import signing

    config = signing.Config()  # type: ignore[no-untyped-call]
    signer.prepare(config)
    return config


def _signature(config: "signing.Config", hashed: "manifest.Manifest", pack: Path) -> bytes:
    try:
        with TemporaryDirectory() as folder:  # the library writes to a name only, and not atomically
            path = Path(folder) / "bundle"
            try:
                config.set_hashing_config(_known(hashed)).sign(pack, path)
            except Exception as error:
                if isinstance(error, OSError) and error.filename:
                    raise
                raise StorageError(f"{pack} could not be signed: {_first_line(error)}") from error
            return path.read_bytes()
    except OSError as error:
        where = error.filename or "the folder for temporary files"
        raise StorageError(
            f"{pack} could not be signed: {where} cannot be written ({error.strerror}); make room"
            " for temporary files, or set TMPDIR to a folder for them, and run the same command again"
        ) from error


def _listed(pack: Path) -> tuple[Sealed, dict[str, str]]:
    """The manifest, and the SHA-256 of every file by name: its own by its bytes, others as SHA256SUMS has them."""
    with Folder(pack) as folder:
        sealed = read_sealed(folder)
        listed = sums.read(folder, sealed.manifest)
    if listed is None:
        raise MismatchError(f"{pack / names.SUMS_FILE} is damaged; `moe-pack repair` can make it again")
    digests = {
        names.SUMS_FILE: sha256(sums.render(listed)).hexdigest(),
        names.MANIFEST_FILE: sealed.digests.sha256,
    }
    return sealed, listed | digests


def _difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The first file by which two lists differ, in words; empty if they do not."""
    for name in sorted(one.keys() | other.keys()):
        if name not in other:
            return f"{name} is missing"
        if name not in one:
            return f"{name} is not among its files"
        if one[name] != other[name]:
            return f"{name} differs"
    return ""


def _as_library_manifest(name: str, listed: Mapping[str, str]) -> "manifest.Manifest":
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest  # its public modules name none; the version is pinned

    how = manifest.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    items = [how.new_item(file, Digest("sha256", bytes.fromhex(digest))) for file, digest in listed.items()]
    return manifest.Manifest(name, items, how)


def _known(manifest_: "manifest.Manifest") -> "hashing.Config":
    """The library's hashing where the hashes are known already: it gives `manifest_` for every path."""
    from model_signing import hashing

    class Known(hashing.Config):
        def hash(self, model_path: object, *, files_to_hash: object = None) -> "manifest.Manifest":
            return manifest_

    return Known()  # type: ignore[no-untyped-call]

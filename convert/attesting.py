"""The commands that attest something of a pack to others: sign, provenance. Thin, as all are."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ..manifests.console import ConsoleProgress, say
from ..manifests.errors import UsageError
from ..manifests.files import require_there
from .options import JobsOption, JsonOption, PackArgument
from .plan import default_jobs, require_new
from .provenance import BUILDER, Builder, provenance_of, write
from .report import table
from .showing import show
from .signing import Identity, Judge, KeyFile, Keyless, Signed, Signer, beside, judge, require_beside
from .signing import sign as sign_pack

JOBS = default_jobs()


def sign(
    pack: PackArgument,
    key: Annotated[
        Path | None, typer.Option(metavar="PRIVATE.pem", help="An unencrypted EC private key: P-256, P-384 or P-521.")
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="Instead: keyless, through Sigstore; needs the network.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The bundle to write.", show_default="PACK.sig")
    ] = None,
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Sign every file of a pack: an OpenSSF Model Signing bundle, beside the pack. Reads every byte first."""
    if (key is not None) == sigstore:
        raise UsageError("give --key PRIVATE.pem, or --sigstore to sign without a key")
    signer: Signer = Keyless() if key is None else KeyFile(key)
    signed = sign_pack(pack, signer, out or beside(pack), threads=jobs, progress=ConsoleProgress())
    show(
        msgspec.to_builtins(signed),
        lambda facts: table(
            facts["pack"],
            [
                ("signed", f"{facts['files']} files, by {facts['by']}"),
                ("digest", facts["pack_digest"]),
                ("bundle", facts["signature"]),
            ],
        ),
        json=json,
    )


def provenance(
    pack: PackArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The statement to write.")],
    builder: Annotated[str, typer.Option(metavar="URI", help="Who has built the pack.")] = BUILDER,
    invocation: Annotated[
        str | None, typer.Option(metavar="URI", help="Which run of the builder it was; CI has a URL for it.")
    ] = None,
) -> None:
    """Write an in-toto statement of a pack's files, its source files and its recipe (SLSA provenance v1)."""
    require_new(out)
    require_beside(out, pack)
    write(provenance_of(pack, Builder(builder, invocation)), out)
    say(f"{out}: what {pack} says of itself; its bytes were not read, verify does that")


def require_signed(
    pack: Path, public: Path | None, identity: str | None, issuer: str | None, bundle: Path | None
) -> Signed | None:
    """The signature that the options of verify ask for, found good; None if they ask for none."""
    if (identity is None) != (issuer is None):
        raise UsageError("--identity and --issuer say together who has signed; give both")
    if public is not None and identity is not None:
        raise UsageError("--signed-by and --identity exclude each other; give one of them")
    by: Judge
    if public is not None:
        by = KeyFile(public)
    elif identity is not None and issuer is not None:
        by = Identity(identity, issuer)
    elif bundle is not None:
        raise UsageError("say whose signature is expected: --signed-by PUBLIC.pem")
    else:
        return None
    if bundle is not None:
        require_there(bundle)
    return judge(pack, bundle or beside(pack), by)

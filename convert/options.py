"""The arguments and options of `moe-pack`: what each is called and says of itself. Defaults stand in the commands."""

from pathlib import Path
from typing import Annotated

import typer

from ..quantize.methods import METHODS
from .recipe import DEFAULT_FORMAT, DEFAULT_METHOD, TRUNK_FORMATS

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A checkpoint: a directory, or org/name or org/name@revision on the Hugging Face Hub (downloaded first).",
    ),
]
# Not readable by typer's leave: our own sentence says what failed, and how (exit code 4, not 2).
PackArgument = Annotated[Path, typer.Argument(metavar="PACK", help="A pack's directory.", readable=False)]
PacksArgument = Annotated[list[Path], typer.Argument(metavar="PACK...", help="Packs of one model.", readable=False)]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What moe-pack calibrate has written; imatrix and gptq need it."),
]
JobsOption = Annotated[int, typer.Option(min=1, max=1024, help="Threads.", show_default="the cores, at most 16")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
OutOption = Annotated[
    Path,
    typer.Option(
        help="Where the pack would go: the disk whose free space and speed count.",
        show_default="the current directory",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        help="Experts' format: affine{2,3,4,6,8}-g{32,64,128}, affine{2,3}-g{16,32}s, book{2,3}-g{8,16}. What already"
        " is in it passes through.",
        show_default=DEFAULT_FORMAT.name,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(help=f"How experts' codes are chosen: {', '.join(METHODS)}.", show_default=DEFAULT_METHOD),
]
TrunkOption = Annotated[
    str | None,
    typer.Option(
        help=f"The trunk's format: {', '.join(TRUNK_FORMATS)}. Router and norms keep theirs, and so does a matrix that"
        " already has no more bits; with 4 bits, output head, shared experts and output projections have 8.",
        show_default="source; with --budget, the best of source, affine8-g64 and affine4-g64",
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A recipe as JSON or TOML, with formats per layer and projection; see recipe."),
]
BitsOption = Annotated[
    float | None,
    typer.Option(help="Choose the best formats of at most so many bits per expert weight (without records' padding)."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Choose the best formats for a pack of at most this size, such as 121GB."),
]
ReferenceOption = Annotated[
    str, typer.Option(metavar="SRC", help="What they are judged against: a checkpoint or a pack.")
]
TextOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Text to predict; NUL between documents that are apart.")
]
TokensOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='Instead: {"windows": [[17, 4, ...], ...], "scored_from": position}, of tokens.'),
]
ToolsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Tool cases, a JSON line each: {"messages": [...], "tools": [...], "expected": {"name": "f", "arguments":'
        ' {...}}}, or "expected": null where no tool should be called. docs/tools.md shows both.',
    ),
]
KsOption = Annotated[
    list[int] | None,
    typer.Option("--experts-per-token", "-k", help="The packs' K; may be repeated.", show_default="the model's"),
]
ReferenceKOption = Annotated[int | None, typer.Option(help="The reference's K.", show_default="the model's")]
LimitOption = Annotated[int | None, typer.Option(help="Most tokens, from all over the text.", show_default="all")]
WeightsOption = Annotated[bool, typer.Option(help="Compare the experts' weights too.")]
PictureOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw KL and SQNR per layer: .svg, .png.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads.", show_default="the cores")]
MemoryOption = Annotated[str, typer.Option(metavar="SIZE", help="Hidden states above this go to disk.")]
ScratchOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Where on disk.", show_default="the system's")]
CalibrationTextOption = Annotated[
    Path, typer.Option(metavar="FILE", help="UTF-8 text; NUL between documents that are apart.")
]
CalibrationOutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="The calibration file to write.")
]
SampleOption = Annotated[int, typer.Option(min=1, help="About so many tokens are used, from all over the text.")]
CalibrationWindowOption = Annotated[int, typer.Option(help="Tokens that the model sees together.")]
HeldOutOption = Annotated[int, typer.Option(help="Every n-th window is not fitted to, but judges what was fitted.")]
HessiansOption = Annotated[
    str,
    typer.Option(help="Whose correlations are kept for each expert: none, inner (down's inputs), all or auto."),
]
HessianBytesOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Auto keeps what fits into this, before compression.")
]
ThroughOption = Annotated[
    Path | None, typer.Option(metavar="PACK", help="Use this pack's experts instead of the checkpoint's.")
]
SensitivitiesOption = Annotated[
    bool, typer.Option("--sensitivities", help="Measure too how much each layer's projections matter.")
]
SensitivityTokensOption = Annotated[int, typer.Option(min=2, help="About so many tokens are used for that.")]
DeviceOption = Annotated[str, typer.Option(help="Where sums are gathered: cpu, cuda (needs torch) or auto.")]
LockOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What moe-pack lock has written: checkpoint, recipe and digest.")
]
OfSourceOption = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="SRC", help="The checkpoint that the pack was made from.", show_default="the lock's"
    ),
]
NeededSourceOption = Annotated[
    str, typer.Option("--source", metavar="SRC", help="The checkpoint that the pack was made from.")
]
SubsetOption = Annotated[
    str | None,
    typer.Option(
        metavar="n/t|x%",
        help="Read the n-th of t slices of the records, or a share drawn by --seed; all else that is small.",
    ),
]
SourceDigestsOption = Annotated[
    bool,
    typer.Option(
        "--source-digests", help="Hash all weight files of the checkpoint too, and hold them to the manifest."
    ),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Which share is drawn.", show_default="0")]
StateOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep there what is done, so that the same command goes on after an interrupt."),
]
SignedByOption = Annotated[
    Path | None, typer.Option(metavar="PUBLIC.pem", help="Require a signature by the private key of this public one.")
]
IdentityOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Require a keyless signature of this identity; needs the network.")
]
IssuerOption = Annotated[str | None, typer.Option(metavar="URL", help="Who vouches for that identity.")]
SignatureOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The bundle with the signature.", show_default="PACK.sig")
]

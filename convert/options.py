"""The options of `moe-pack` that say which recipe is wanted, shared by the commands that take one."""

from pathlib import Path
from typing import Annotated

import typer

from ..quantize.methods import METHODS
from .recipe import DEFAULT_FORMAT, DEFAULT_METHOD, TRUNK_FORMATS

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

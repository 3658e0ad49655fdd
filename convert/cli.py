"""The command line `moe-pack`. Thin: it parses, calls the rooms, and shows what they return."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..layout.reader import Pack
from ..manifests import command, console
from ..manifests.command import application, reported
from ..manifests.console import ConsoleProgress, print_json, say
from ..manifests.errors import MismatchError, StorageError, UsageError
from ..manifests.manifest import pack_digest
from ..manifests.names import MANIFEST_FILE
from ..manifests.report import Report
from ..manifests.verify import verify as verify_pack
from ..runtime.backends.base import Backend
from ..runtime.corpus import Room
from ..runtime.engine import cpus, open_backend
from ..runtime.language import Language
from ..runtime.packfiles import LooseFiles
from ..runtime.quality import picture as quality_picture
from ..runtime.quality import report as quality_report
from ..runtime.quality.asked import LAYER_TOKENS, LONGEST_ANSWER, Asked
from ..runtime.quality.evaluation import Evaluator, Subject, document
from ..runtime.quality.vocabulary import require_same_model
from ..runtime.quality.windows import WINDOW, Windows, read_text
from ..runtime.quantities import parse_size
from ..runtime.sensitivity import measure as measure_sensitivities
from ..runtime.source import ExpertsFrom, PackSource, Source
from ..runtime.sweep import Sweep
from ..runtime.tokenizer import Tokenizer
from . import facts, report
from .calibration import report as calibration_report
from .calibration.collector import Collector
from .calibration.file import CalibrationFile
from .calibration.matching import require_same
from .calibration.plan import Options, plan_calibration
from .calibration.run import calibrate as calibrate_checkpoint
from .checkpoint import TOKENIZER, Checkpoint
from .choice import Choice
from .coarse import coarsened, coarsest
from .estimate import estimate
from .options import BitsOption, BudgetOption, FormatOption, MethodOption, RecipeOption, TrunkOption
from .order import Order
from .pipeline import build as build_pack
from .plan import Packing, default_jobs, plan_pack, require_new, require_outside, understand
from .recipefile import written
from .reference import Reference
from .sensitivities import Sensitivities
from .shipped import CHECKPOINT, QUESTION

EXIT_CODES = (
    "Exit codes: 0 done; 1 a pack differs from its manifest; 2 the request cannot be met (usage, existing target);"
    " 3 a checkpoint or pack is malformed; 4 the disk or the network failed, or another process holds the target;"
    " 5 not supported; 130 interrupted."
)

app = application(
    "moe-pack", "Turn mixture-of-experts checkpoints into verified packs that moe-run streams from disk.", EXIT_CODES
)

JOBS = default_jobs()
CPUS = cpus()
HERE = Path()

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A checkpoint: a directory, or org/name or org/name@revision on the Hugging Face Hub (downloaded first).",
    ),
]
PackArgument = Annotated[Path, typer.Argument(metavar="PACK", help="A pack's directory.")]
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


@app.command(epilog=EXIT_CODES)
@reported
def plan(
    source: SourceArgument,
    expert_format: FormatOption = None,
    method: MethodOption = None,
    trunk: TrunkOption = None,
    recipe: RecipeOption = None,
    bits: BitsOption = None,
    budget: BudgetOption = None,
    calibration: CalibrationOption = None,
    jobs: JobsOption = JOBS,
    out: OutOption = HERE,
    json: JsonOption = False,
) -> None:
    """Say what build would write: bytes per part, bits per weight, record size, free space, estimated time."""
    order = Order(expert_format, method, trunk, recipe, bits, _size(budget))
    with Checkpoint.open(source) as checkpoint, _calibration(calibration) as calibrated:
        packing, choice = _planned(checkpoint, order, calibrated, jobs)
        _say_what_is_missing(packing)
        expected = estimate(packing, jobs, facts.existing(out))
        _show(facts.of_plan(packing, choice, expected, out), report.plan_table, json=json)


@app.command(epilog=EXIT_CODES)
@reported
def build(
    source: SourceArgument,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The pack to write; must not exist.")],
    expert_format: FormatOption = None,
    method: MethodOption = None,
    trunk: TrunkOption = None,
    recipe: RecipeOption = None,
    bits: BitsOption = None,
    budget: BudgetOption = None,
    calibration: CalibrationOption = None,
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Write a pack. When interrupted, the same command goes on where it stopped and ends with the same bytes."""
    order = Order(expert_format, method, trunk, recipe, bits, _size(budget))
    _show(_build(source, target, order, calibration, jobs), report.build_table, json=json)


@app.command("recipe", epilog=EXIT_CODES)
@reported
def print_recipe(
    source: SourceArgument,
    expert_format: FormatOption = None,
    method: MethodOption = None,
    trunk: TrunkOption = None,
    recipe: RecipeOption = None,
    bits: BitsOption = None,
    budget: BudgetOption = None,
    calibration: CalibrationOption = None,
    jobs: JobsOption = JOBS,
) -> None:
    """Print a recipe as JSON, to be edited and given back with --recipe; say on stderr how it was chosen."""
    order = Order(expert_format, method, trunk, recipe, bits, _size(budget))
    with Checkpoint.open(source) as checkpoint, _calibration(calibration) as calibrated:
        packing, choice = _planned(checkpoint, order, calibrated, jobs)
    _say_choice(choice)
    print_json(written(packing.recipe))


@app.command(epilog=EXIT_CODES)
@reported
def inspect(
    pack: Annotated[Path, typer.Argument(metavar="PACK|FILE", help="A pack's directory, or a calibration file.")],
    json: JsonOption = False,
) -> None:
    """Show what a pack holds, after checking its structure (but not its weights; that is verify), or a calibration."""
    if pack.is_file():
        with CalibrationFile.open(pack) as calibration:
            found = calibration_report.document(calibration)
            _show(found, calibration_report.calibration_table, json=json)
        return
    with Pack.open(pack) as opened:
        _show(facts.of_pack(opened), report.pack_table, json=json)


@app.command(epilog=EXIT_CODES)
@reported
def verify(pack: PackArgument, jobs: JobsOption = JOBS, json: JsonOption = False) -> None:
    """Read a whole pack and check every byte; name layer, expert and component of any damage."""
    checked = verify_pack(pack, threads=jobs, progress=ConsoleProgress())
    _show(facts.of_report(checked, pack), report.verify_table, json=json)
    _require_intact(checked, pack)


@app.command(epilog=EXIT_CODES)
@reported
def demo(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The pack to write; must not exist.")],
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Pack the small model that is shipped with moe-pack to 2 bits, verify it, and say what to run next."""
    built = _build(str(CHECKPOINT), target, Order(), None, jobs)
    _require_intact(verify_pack(target, threads=jobs, progress=ConsoleProgress()), target)
    _show(built, report.build_table, json=json)
    say(f"verified. Next: moe-run generate {target} --messages {QUESTION} --temp 0")


@app.command(epilog=EXIT_CODES)
@reported
def quality(
    packs: Annotated[list[Path], typer.Argument(metavar="PACK...", help="Packs of one model.")],
    reference: Annotated[
        str, typer.Option(metavar="SRC", help="What they are judged against: a checkpoint or a pack.")
    ],
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to predict; NUL between documents that are apart.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Instead: {"windows": [[token, ...], ...], "scored_from": position}.'),
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Tool cases, JSON lines of {"messages", "tools", "expected"}.'),
    ] = None,
    experts_per_token: Annotated[
        list[int] | None,
        typer.Option("--experts-per-token", "-k", help="The packs' K; may be repeated.", show_default="the model's"),
    ] = None,
    reference_experts_per_token: Annotated[
        int | None, typer.Option(help="The reference's K.", show_default="the model's")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens predicted from one another.")] = WINDOW,
    limit: Annotated[int | None, typer.Option(help="Most tokens, from all over the text.", show_default="all")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Longest answer to a tool case.")
    ] = LONGEST_ANSWER,
    weights: Annotated[bool, typer.Option(help="Compare the experts' weights too.")] = True,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw KL and SQNR per layer: .svg, .png.")
    ] = None,
    layer_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens for each layer's own KL.", show_default=f"{LAYER_TOKENS} if drawn, else 0"),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads.", show_default="the cores")] = CPUS,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Hidden states above this go to disk.")] = "2GB",
    scratch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where on disk.", show_default="the system's")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure what packs lose: KL and agreement on a text, tool calls, weight error, against a reference."""
    asked = Asked(text, tokens, tools, window, limit, max_tokens, weights, layer_tokens, picture)
    if picture is not None:
        quality_picture.check(picture)
    room = Room(parse_size(memory), scratch)
    with ExitStack() as opened:
        sources = [opened.enter_context(_pack_source(path)) for path in packs]
        subjects = [Subject(source, k) for source in sources for k in experts_per_token or (None,)]
        against = opened.enter_context(_reference(reference))
        evaluator = Evaluator(against, subjects, open_backend(threads), ConsoleProgress(), reference_experts_per_token)
        plan = asked.plan(Language.of(sources[0].pack), against.model, room)
        evaluation = evaluator.evaluate(plan)
    if picture is not None:
        quality_picture.draw(evaluation, picture)
    if json:
        print_json(document(evaluation))
    else:
        console.out.width = quality_report.width(evaluation)  # a narrower terminal wraps lines, and loses no figure
        console.out.print(quality_report.table(evaluation))


@app.command(epilog=EXIT_CODES)
@reported
def calibrate(
    source: SourceArgument,
    text: Annotated[Path, typer.Option(metavar="FILE", help="UTF-8 text; NUL between documents that are apart.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The calibration file to write.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens used, from all over the text.")] = 262144,
    window: Annotated[int, typer.Option(help="Tokens that the model sees together.")] = WINDOW,
    held_out: Annotated[int, typer.Option(help="Every n-th window is not fitted to, but judges what was fitted.")] = 8,
    expert_hessians: Annotated[
        str,
        typer.Option(help="Whose correlations are kept for each expert: none, inner (down's inputs), all or auto."),
    ] = "auto",
    hessian_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="Auto keeps what fits into this, before compression.")
    ] = "8GB",
    through: Annotated[
        Path | None, typer.Option(metavar="PACK", help="Use this pack's experts instead of the checkpoint's.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads.", show_default="the cores")] = CPUS,
    sensitivities: Annotated[
        bool, typer.Option("--sensitivities", help="Measure too how much each layer's projections matter.")
    ] = False,
    sensitivity_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text for that.")] = 2048,
    device: Annotated[str, typer.Option(help="Where sums are gathered: cpu, cuda (needs torch) or auto.")] = "auto",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Hidden states above this go to disk.")] = "2GB",
    json: JsonOption = False,
) -> None:
    """Measure what each expert sees of a text, for the methods imatrix and gptq. When interrupted, the same goes on."""
    start = time.monotonic()
    options = Options(window, held_out, expert_hessians, parse_size(hessian_bytes), device, parse_size(memory))
    require_new(out)
    if _is_pack(source):
        raise UsageError(f"{source} is a pack; give the checkpoint it was made from, and the pack as --through")
    with Checkpoint.open(source) as checkpoint, ExitStack() as opened:
        reference: Source = Reference(checkpoint)
        backend = open_backend(threads)
        tokenizer = Tokenizer.open(LooseFiles(checkpoint.origin.directory), reference.model.vocab_size)
        whole_text = read_text(text, tokenizer, window=window)
        windows = whole_text.sample(tokens)
        windows.require_within(reference.model.max_position_embeddings)
        if through is not None:
            packed = opened.enter_context(_pack_source(through))
            require_same_model(reference, packed)
            reference = ExpertsFrom(reference, packed)
        corpus = windows.corpus
        digest = pack_digest(through) if through is not None else None
        whole = whole_text.corpus.sequences
        plan = plan_calibration(checkpoint, corpus.starts, whole, windows.digest, options, through=digest)
        say(calibration_report.planned(plan))
        sweep = Sweep(reference, backend)
        room = Room(options.spill_bytes, out.parent)
        stream = sweep.embed(corpus, room)

        def advance(layer: int, observer: Collector) -> None:
            sweep.advance(layer, stream, observer=observer)

        def measure() -> Sensitivities | None:
            sample = whole_text.sample(sensitivity_tokens)
            return _sensitivities(Reference(checkpoint), sample, backend, room) if sensitivities else None

        try:
            calibrate_checkpoint(plan, checkpoint, out, stream.rows, advance, ConsoleProgress(), measure)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on at the layer where this one stopped")
            raise
    with CalibrationFile.open(out) as written:
        found = calibration_report.document(written, time.monotonic() - start)
        _show(found, calibration_report.calibration_table, json=json)


def _sensitivities(source: Reference, windows: Windows, backend: Backend, room: Room) -> Sensitivities:
    format_ = coarsest(source.model)
    found = measure_sensitivities(
        source, windows, lambda matrix: coarsened(matrix, format_), backend, room=room, progress=ConsoleProgress()
    )
    layers = tuple({name: one.per_error for name, one in layer.items()} for layer in found)
    return Sensitivities(layers, len(windows.rows()), format_.name)


@contextmanager
def _pack_source(path: Path) -> Iterator[PackSource]:
    with Pack.open(path) as pack, PackSource(pack) as source:
        yield source


@contextmanager
def _reference(source: str) -> Iterator[Source]:
    """A pack's directory or a checkpoint, wherever it is."""
    if _is_pack(source):
        with _pack_source(Path(source)) as opened:
            yield opened
    else:
        with Checkpoint.open(source) as checkpoint:
            yield Reference(checkpoint)


def _is_pack(source: str) -> bool:
    return (Path(source) / MANIFEST_FILE).is_file()


def _require_intact(checked: Report, pack: Path) -> None:
    if checked.ok:
        return
    of_kind = Counter(finding.kind for finding in checked.findings)
    if of_kind["damage"]:
        raise MismatchError(f"{pack} is damaged: {_findings(of_kind['damage'])}; pack the checkpoint again")
    if of_kind["unreadable"]:
        raise StorageError(f"{pack} cannot be read: {_findings(of_kind['unreadable'])}; look after the disk")
    stray = [finding.file for finding in checked.findings]
    what = f"{stray[0]} does not belong there; remove it"
    if len(stray) > 1:
        what = f"{stray[0]} and {len(stray) - 1} more do not belong there; remove them"
    raise MismatchError(f"{pack} is intact, but {what}")


def _findings(count: int) -> str:
    return f"{count} finding{'s' if count > 1 else ''}"


def _size(budget: str | None) -> int | None:
    return None if budget is None else parse_size(budget)


@contextmanager
def _calibration(path: Path | None) -> Iterator[CalibrationFile | None]:
    if path is None:
        yield None
    else:
        with CalibrationFile.open(path) as opened:
            yield opened


def _planned(
    checkpoint: Checkpoint, order: Order, calibration: CalibrationFile | None, jobs: int
) -> tuple[Packing, Choice | None]:
    understood = understand(checkpoint)
    if calibration is not None:
        require_same(calibration, understood)
    recipe, choice = order.settle(understood, calibration, jobs=jobs, progress=ConsoleProgress())
    measured = calibration is not None and calibration.sensitivities is not None
    only_chose = choice is not None and measured and not recipe.calibrated  # the pack's bytes come without it
    return plan_pack(understood, recipe, None if only_chose else calibration), choice


def _say_choice(choice: Choice | None) -> None:
    if choice is not None:
        console.err.print(report.choice_table(facts.of_choice(choice)))


def _build(source: str, target: Path, order: Order, calibration: Path | None, jobs: int) -> dict[str, Any]:
    start = time.monotonic()
    require_new(target)
    with Checkpoint.open(source) as checkpoint, _calibration(calibration) as calibrated:
        packing, choice = _planned(checkpoint, order, calibrated, jobs)
        require_outside(target, packing.source)
        _say_choice(choice)
        _say_what_is_left_out(packing)
        _say_what_is_missing(packing)
        try:
            build_pack(packing, target, jobs=jobs, progress=ConsoleProgress())
        except KeyboardInterrupt:
            say("interrupted; the same command goes on where this one stopped")
            raise
        return facts.of_build(packing.plan, target, time.monotonic() - start)


def _say_what_is_left_out(packing: Packing) -> None:
    if left := packing.source.left_out:
        parts = (f"{part.what} ({part.tensors} tensors, {report.amount(part.size)})" for part in left)
        say(f"left out: {'; '.join(parts)}")


def _say_what_is_missing(packing: Packing) -> None:
    checkpoint = packing.source.checkpoint
    if TOKENIZER not in {path.name for path in checkpoint.copied}:
        say(
            f"{checkpoint.origin.directory} has no {TOKENIZER}: it can be packed, but moe-run will refuse the pack;"
            " put the model's own beside config.json first"
        )


def _show(found: dict[str, Any], as_table: Any, *, json: bool) -> None:
    if json:
        print_json(found)
    else:
        console.out.print(as_table(found))


def main() -> None:
    """The console script: errors become one sentence and an exit code."""
    command.main(app)

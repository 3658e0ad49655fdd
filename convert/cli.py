"""The command line `moe-pack`. Thin: it parses, calls the rooms, and shows what they return."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..layout.reader import Pack
from ..layout.writer import partial_directory
from ..manifests import command, console
from ..manifests.command import application, reported
from ..manifests.console import ConsoleProgress, print_json, say
from ..manifests.errors import EXIT_CODES_SENTENCE as EXIT_CODES
from ..manifests.errors import CorruptInputError, UsageError
from ..manifests.names import MANIFEST_FILE
from ..manifests.report import require_intact
from ..manifests.verify import verify as verify_pack
from ..runtime.backends.base import Backend
from ..runtime.backends.choice import open_cpu
from ..runtime.corpus import Room
from ..runtime.engine import cpus
from ..runtime.passage import Passage, read_whole
from ..runtime.quality import report as quality_report
from ..runtime.quality.asked import LAYER_TOKENS, LONGEST_ANSWER, Asked
from ..runtime.quality.evaluation import document
from ..runtime.quality.windows import WINDOW, Windows
from ..runtime.quantities import parse_size
from ..runtime.sensitivity import measure as measure_sensitivities
from ..runtime.source import PackSource, Source
from . import attesting, facts, proving, report
from .calibration import report as calibration_report
from .calibration.file import CalibrationFile
from .calibration.identity import require_tokenizer
from .calibration.plan import Options, plan_calibration
from .calibration.run import calibrate as calibrate_checkpoint
from .checkpoint import TOKENIZER, Checkpoint
from .coarse import coarsened, coarsest
from .estimate import estimate
from .lock import Lock, read_lock
from .options import (
    BitsOption,
    BudgetOption,
    CalibrationOption,
    CalibrationOutOption,
    CalibrationTextOption,
    CalibrationWindowOption,
    DeviceOption,
    FormatOption,
    HeldOutOption,
    HessianBytesOption,
    HessiansOption,
    JobsOption,
    JsonOption,
    KsOption,
    LimitOption,
    LockOption,
    MemoryOption,
    MethodOption,
    OutOption,
    PacksArgument,
    PictureOption,
    RecipeOption,
    ReferenceKOption,
    ReferenceOption,
    SampleOption,
    ScratchOption,
    SensitivitiesOption,
    SensitivityTokensOption,
    SourceArgument,
    TextOption,
    ThreadsOption,
    ThroughOption,
    TokensOption,
    ToolsOption,
    TrunkOption,
    WeightsOption,
)
from .order import Order
from .pipeline import build as build_pack
from .plan import Packing, default_jobs, require_new, require_outside
from .recipefile import written
from .reference import Reference
from .sensitivities import Sensitivities
from .shipped import CHECKPOINT, QUESTION
from .showing import opened, show
from .wish import Choice

app = application(
    "moe-pack", "Turn mixture-of-experts checkpoints into verified packs that moe-run streams from disk.", EXIT_CODES
)

JOBS = default_jobs()
CPUS = cpus()
HERE = Path()


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
    with Checkpoint.open(source) as checkpoint, opened(CalibrationFile.open, calibration) as calibrated:
        packing, choice = order.plan(checkpoint, calibrated, jobs=jobs, progress=ConsoleProgress())
        _say_what_is_missing(packing)
        expected = estimate(packing, jobs, facts.existing(out))
        show(facts.of_plan(packing, choice, expected, out), report.plan_table, json=json)


@app.command(epilog=EXIT_CODES)
@reported
def build(
    source: SourceArgument,
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The pack to write; must not exist.", show_default=False)
    ] = None,
    expert_format: FormatOption = None,
    method: MethodOption = None,
    trunk: TrunkOption = None,
    recipe: RecipeOption = None,
    bits: BitsOption = None,
    budget: BudgetOption = None,
    calibration: CalibrationOption = None,
    lock: LockOption = None,
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Write a pack. When interrupted, the same command goes on where it stopped and ends with the same bytes.

    With --lock, SRC may be left out: it is the repository that the lock names.
    """
    locked = None if lock is None else read_lock(lock)
    if target is None:
        if locked is None:
            raise UsageError(f"say where the pack of {source} shall be written: moe-pack build SRC OUT")
        source, target = locked.repository, Path(source)
    order = Order(expert_format, method, trunk, recipe, bits, _size(budget), None if locked is None else locked.recipe)
    built = _build(source, target, order, calibration, jobs, locked)
    show(built, report.build_table, json=json)
    if locked is not None and locked.pack_digest is not None:
        locked.require_pack(target, built["pack_digest"])


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
    with Checkpoint.open(source) as checkpoint, opened(CalibrationFile.open, calibration) as calibrated:
        packing, choice = order.plan(checkpoint, calibrated, jobs=jobs, progress=ConsoleProgress())
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
            show(found, calibration_report.calibration_table, json=json)
        return
    with Pack.open(pack) as sound:
        show(facts.of_pack(sound), report.pack_table, json=json)


for proof in (proving.verify, proving.scrub, proving.diff, proving.reproduce, proving.repair, proving.lock):
    app.command(epilog=EXIT_CODES)(reported(proof))
for attestation in (attesting.sign, attesting.provenance):
    app.command(epilog=EXIT_CODES)(reported(attestation))


@app.command(epilog=EXIT_CODES)
@reported
def demo(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The pack to write; must not exist.")],
    jobs: JobsOption = JOBS,
    json: JsonOption = False,
) -> None:
    """Pack the small model that is shipped with moe-pack to 2 bits, verify it, and say what to run next."""
    built = _build(str(CHECKPOINT), target, Order(), None, jobs)
    require_intact(verify_pack(target, threads=jobs, progress=ConsoleProgress()), target)
    show(built, report.build_table, json=json)
    say(f"verified. Next: moe-run generate {target} --messages {QUESTION} --temp 0")


@app.command(epilog=EXIT_CODES)
@reported
def quality(
    packs: PacksArgument,
    reference: ReferenceOption,
    text: TextOption = None,
    tokens: TokensOption = None,
    tools: ToolsOption = None,
    experts_per_token: KsOption = None,
    reference_experts_per_token: ReferenceKOption = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens of the text predicted from one another.", show_default=str(WINDOW))
    ] = None,
    limit: LimitOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", "-n", help="Longest answer to a tool case.", show_default=str(LONGEST_ANSWER)),
    ] = None,
    weights: WeightsOption = True,
    picture: PictureOption = None,
    layer_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens for each layer's own KL.", show_default=f"{LAYER_TOKENS} if drawn, else 0"),
    ] = None,
    threads: ThreadsOption = CPUS,
    memory: MemoryOption = "2GB",
    scratch: ScratchOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what packs lose: KL and agreement on a text, tool calls, weight error, against a reference."""
    ks = tuple(experts_per_token or ()), reference_experts_per_token
    asked = Asked(text, tokens, tools, window, limit, max_tokens, weights, layer_tokens, picture, *ks, as_document=json)
    room = Room(parse_size(memory), scratch)
    with ExitStack() as resources:
        sources = [resources.enter_context(PackSource.open(path)) for path in packs]
        against = resources.enter_context(_reference(reference))
        evaluation = asked.evaluate(against, sources, open_cpu(threads), room, ConsoleProgress())
    if json:
        print_json(document(evaluation))
    else:
        shown = quality_report.table(evaluation)
        console.out.width = quality_report.width(shown, console.out)  # a narrower terminal wraps lines, loses no figure
        console.out.print(shown)
    for remark in quality_report.remarks(evaluation):
        say(remark)
    asked.draw(evaluation)  # last: a disk that is full costs the picture and no figure


@app.command(epilog=EXIT_CODES)
@reported
def calibrate(
    source: SourceArgument,
    text: CalibrationTextOption,
    out: CalibrationOutOption,
    tokens: SampleOption = 262144,
    window: CalibrationWindowOption = WINDOW,
    held_out: HeldOutOption = 8,
    expert_hessians: HessiansOption = "auto",
    hessian_bytes: HessianBytesOption = "8GB",
    through: ThroughOption = None,
    threads: ThreadsOption = CPUS,
    sensitivities: SensitivitiesOption = False,
    sensitivity_tokens: SensitivityTokensOption = 2048,
    device: DeviceOption = "auto",
    memory: MemoryOption = "2GB",
    json: JsonOption = False,
) -> None:
    """Measure what each expert sees of a text, for the methods imatrix and gptq. When interrupted, the same goes on."""
    start = time.monotonic()
    options = Options(window, held_out, expert_hessians, parse_size(hessian_bytes), device, parse_size(memory))
    require_new(out)
    if _is_pack(source):
        raise UsageError(f"{source} is a pack; give the checkpoint it was made from, and the pack as --through")
    with Checkpoint.open(source) as checkpoint, opened(PackSource.open, through) as packed:
        require_outside(out, checkpoint)
        require_tokenizer(checkpoint)
        model, backend, room = Reference(checkpoint), open_cpu(threads), Room(options.spill_bytes, out.parent)
        whole = read_whole(model, checkpoint.origin.directory, text, window=window)
        passage = Passage(model, whole.sample(tokens), backend, room, through=packed)
        starts, available = passage.windows.corpus.starts, whole.corpus.sequences
        sample = whole.sample(sensitivity_tokens) if sensitivities else None
        measured = 0 if sample is None else len(sample.corpus)
        plan = plan_calibration(
            checkpoint,
            starts,
            available,
            whole.digest,
            options,
            through=passage.through,
            measured_tokens=measured,
        )
        say(calibration_report.planned(plan))
        if remark := calibration_report.remark(plan):
            say(remark)
        measure = None if sample is None else partial(_sensitivities, model, sample, backend, room)
        again = "; a measurement of sensitivities that had begun is made again" if sensitivities else ""
        with _resumable(out, f"at the layer where this one stopped{again}"):
            calibrate_checkpoint(plan, checkpoint, out, passage.rows, passage.advance, ConsoleProgress(), measure)
    with CalibrationFile.open(out) as written:
        found = calibration_report.document(written, time.monotonic() - start)
        show(found, calibration_report.calibration_table, json=json)


def _sensitivities(source: Reference, windows: Windows, backend: Backend, room: Room) -> Sensitivities:
    format_ = coarsest(source.model)
    found = measure_sensitivities(
        source, windows, lambda matrix: coarsened(matrix, format_), backend, room=room, progress=ConsoleProgress()
    )
    layers = tuple({name: one.per_error for name, one in layer.items()} for layer in found)
    return Sensitivities(layers, len(windows.rows()), format_.name)


@contextmanager
def _resumable(target: Path, where: str) -> Iterator[None]:
    """Work on `target` that goes on `where` it was interrupted; whoever interrupts it is told so.

    Where malformed input ends it, the error names what is left of it too.
    """
    partial = partial_directory(target)
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; the same command goes on {where}")
        raise
    except CorruptInputError as error:
        if not partial.exists() or str(partial) in str(error):
            raise
        raise CorruptInputError(
            f"{error}; remove {partial}, or mend the input and give the same command again"
        ) from error


@contextmanager
def _reference(source: str) -> Iterator[Source]:
    """A pack's directory or a checkpoint, wherever it is."""
    if _is_pack(source):
        with PackSource.open(Path(source)) as packed:
            yield packed
    else:
        with Checkpoint.open(source) as checkpoint:
            yield Reference(checkpoint)


def _is_pack(source: str) -> bool:
    return (Path(source) / MANIFEST_FILE).is_file()


def _size(budget: str | None) -> int | None:
    return None if budget is None else parse_size(budget)


def _say_choice(choice: Choice | None) -> None:
    if choice is not None:
        console.err.print(report.choice_table(facts.of_choice(choice)))


def _build(
    source: str, target: Path, order: Order, calibration: Path | None, jobs: int, locked: Lock | None = None
) -> dict[str, Any]:
    start = time.monotonic()
    require_new(target)
    with Checkpoint.open(source) as checkpoint, opened(CalibrationFile.open, calibration) as calibrated:
        require_outside(target, checkpoint)
        packing, choice = order.plan(checkpoint, calibrated, jobs=jobs, progress=ConsoleProgress())
        if locked is not None:
            locked.require_arithmetic()
            locked.require_source(packing)
            locked.require_calibration(packing)
        _say_choice(choice)
        _say_what_is_left_out(packing)
        _say_what_is_missing(packing)
        with _resumable(target, "where this one stopped"):
            built = build_pack(packing, target, jobs=jobs, progress=ConsoleProgress())
        return facts.of_build(packing.plan, built, target, time.monotonic() - start)


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


def main() -> None:
    """The console script: errors become one sentence and an exit code."""
    command.main(app)

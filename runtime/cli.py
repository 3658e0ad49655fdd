"""The command line `moe-run`. Thin: it parses, calls the room, and shows what it returns."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..layout.reader import Pack
from ..manifests import command, console
from ..manifests.command import application, reported
from ..manifests.console import print_json, say
from ..manifests.errors import EXIT_CODES_SENTENCE as EXIT_CODES
from ..manifests.errors import INTERRUPTED_EXIT_CODE, UnsupportedError
from . import host, report
from ._native import bound_heap
from .asked import Asked
from .backends.choice import MOST_THREADS, Kind
from .bench import Workload, measure
from .chat import opening
from .chat.opening import Wanted
from .chat.partner import Settings
from .devices import device as find_device
from .disk import limit as disk_limit
from .doctor import diagnose, diagnose_for
from .engine import Engine, EngineOptions, plan_run, tuning
from .generate import Generation, Limits, check_room
from .language import Language
from .quantities import parse_size
from .sampling import Sampler, Sampling
from .streaming.files import Access
from .watch import UNWATCHED, Watch

DEFAULTS = EngineOptions()
MAX_TOKENS = 512  # of an answer, when neither the user nor the pack says

app = application(
    "moe-run", "Run packs: experts are streamed from disk, the rest of the model is in memory.", EXIT_CODES
)

_prompt = partial(typer.Option, rich_help_panel="Prompt")
_sampling = partial(typer.Option, rich_help_panel="Sampling (defaults: the pack's generation_config.json)")
_chat = partial(typer.Option, rich_help_panel="Chat")
_server = partial(typer.Option, rich_help_panel="Server")
_engine = partial(typer.Option, rich_help_panel="Engine")

PackArgument = Annotated[Path, typer.Argument(metavar="PACK", help="A pack's directory.", readable=False)]
TempOption = Annotated[float | None, _sampling(help="Temperature; 0 always takes the likeliest token.")]
TopPOption = Annotated[float | None, _sampling(help="Keep the likeliest tokens that reach this probability.")]
TopKOption = Annotated[int | None, _sampling(help="Keep this many of the likeliest tokens; 0 keeps all.")]
MinPOption = Annotated[float | None, _sampling(help="Drop tokens below this share of the likeliest one's.")]
SeedOption = Annotated[int | None, _sampling(help="Same seed, same answer.", show_default="random")]
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", "-n", help="Longest answer.", show_default=f"the pack's, else {MAX_TOKENS}"),
]
StopOption = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
]
SystemOption = Annotated[str | None, _prompt(metavar="TEXT", help="A system message before the question.")]
ToolsOption = Annotated[
    Path | None, _prompt(metavar="FILE", help="A JSON file with a list of tools the model may call.")
]
VariablesOption = Annotated[
    str | None, _prompt(metavar="JSON", help='Variables of the chat template: {"enable_thinking": false}.')
]
MessagesOption = Annotated[
    Path | None, _prompt(metavar="FILE", help='A JSON file with a whole chat: {"messages": [...], "tools": [...]}.')
]
KOption = Annotated[
    int | None,
    _engine("--experts-per-token", "-K", help="Use fewer experts per token.", show_default="the model's own K"),
]
MemoryOption = Annotated[
    str | None,
    _engine(metavar="SIZE", help="Budget of the whole process, such as 8GB or 7.5GiB.", show_default="3/4 of the free"),
]
SlotsOption = Annotated[
    int | None, _engine(help="Expert records kept in memory.", show_default="what the memory budget leaves")
]
ThreadsOption = Annotated[int, _engine(help="Threads that compute.", min=1, max=MOST_THREADS, show_default="all cores")]
ContextOption = Annotated[
    int | None,
    _engine(
        help="Most tokens, prompt and answer together.",
        show_default="the model's, at most 32768, less in a small budget",
    ),
]
ChunkOption = Annotated[
    int | None,
    _engine(
        help="Prompt tokens computed together; each chunk reads each expert it needs once.",
        show_default="2048, less in a small budget",
    ),
]
DigestsOption = Annotated[
    bool, _engine("--check-digests/--no-check-digests", help="Compare every expert read with its digest.")
]
ExactOption = Annotated[
    bool,
    _engine(
        "--exact",
        help="Multiply quantized matrices by activations as they are, in float32, not rounded to fifteen bits; slower.",
    ),
]
AccessOption = Annotated[
    Access | None,
    _engine(help="Read experts around the page cache or through it.", show_default="whichever is faster on this disk"),
]
BackendOption = Annotated[
    Kind, _engine("--backend", help="What computes: metal, cpu, or auto, which is metal on a Mac and cpu elsewhere.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


@app.command(epilog=EXIT_CODES)
@reported
def generate(
    pack: PackArgument,
    prompt: Annotated[
        str | None, _prompt("--prompt", "-p", help="The question, or with --raw the text to continue; - reads stdin.")
    ] = None,
    prompt_file: Annotated[Path | None, _prompt(metavar="FILE", help="A file with the prompt.")] = None,
    messages: MessagesOption = None,
    system: SystemOption = None,
    tools: ToolsOption = None,
    template_vars: VariablesOption = None,
    raw: Annotated[bool, _prompt("--raw", help="Do not use the pack's chat template.")] = False,
    max_tokens: MaxTokensOption = None,
    stop: StopOption = None,
    special: Annotated[bool, typer.Option("--special", help="Show special tokens in the answer.")] = False,
    temp: TempOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    experts_per_token: KOption = None,
    memory: MemoryOption = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = DEFAULTS.threads,
    context: ContextOption = None,
    chunk: ChunkOption = None,
    check_digests: DigestsOption = True,
    exact: ExactOption = False,
    access: AccessOption = None,
    backend: BackendOption = DEFAULTS.backend,
    json: JsonOption = False,
) -> None:
    """Answer a prompt. The answer goes to stdout as it comes, everything else to stderr."""
    asked = Asked(prompt, prompt_file, messages, system, tools, template_vars, raw)
    options = EngineOptions(
        threads, _size(memory), slots, experts_per_token, chunk, context, check_digests, exact, access, backend
    )
    with Pack.open(pack) as opened:
        language = Language.of(opened)
        sampler = Sampler(_chosen(language, temperature=temp, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed))
        longest = _longest(max_tokens, language)
        room = plan_run(opened, options).context
        limits = Limits(longest, room, language.tokenizer.end_tokens, tuple(stop or ()))
        tokens = asked.tokens(language)
        check_room(0, tokens, limits)  # before the trunk is read, which may take long
        with Engine.of(opened, options) as engine:
            _say_notes(engine)
            stream = language.tokenizer.stream(special=special)
            answer = Generation(engine.new_session(), tokens, sampler, stream, limits)
            _show(answer, sampler.settings, engine, json=json)


@app.command(epilog=EXIT_CODES)
@reported
def chat(
    pack: PackArgument,
    system: SystemOption = None,
    messages: MessagesOption = None,
    tools: ToolsOption = None,
    template_vars: VariablesOption = None,
    thinking: Annotated[
        bool | None,
        _prompt("--thinking/--no-thinking", help="Ask the template for it, or not.", show_default="the template's"),
    ] = None,
    fold: Annotated[bool, _chat("--fold", help="Count thinking in one line; /think show shows it.")] = False,
    load: Annotated[Path | None, _chat(metavar="FILE", help="Go on with a conversation that /save wrote.")] = None,
    history: Annotated[
        Path | None,
        _chat(metavar="FILE", help="Where typed lines are kept.", show_default="moepack/chat_history of XDG's state"),
    ] = None,
    keep_history: Annotated[
        bool, _chat(" /--no-history", help="Keep typed lines for this run only.", show_default=False)
    ] = True,
    max_tokens: MaxTokensOption = None,
    stop: StopOption = None,
    temp: TempOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    seed: SeedOption = None,
    experts_per_token: KOption = None,
    memory: MemoryOption = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = DEFAULTS.threads,
    context: ContextOption = None,
    chunk: ChunkOption = None,
    check_digests: DigestsOption = True,
    exact: ExactOption = False,
    access: AccessOption = None,
    backend: BackendOption = DEFAULTS.backend,
) -> None:
    """Converse; /help says what can be typed. Through a pipe each line is a question; only answers go to stdout."""
    options = EngineOptions(
        threads, _size(memory), slots, experts_per_token, chunk, context, check_digests, exact, access, backend
    )
    given = {"temperature": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed}
    flags = {name: value for name, value in given.items() if value is not None}
    wanted = Wanted(
        system=system,
        messages=messages,
        tools=tools,
        variables=template_vars,
        thinking=thinking,
        fold=fold,
        load=load,
        history=history,
        keep_history=keep_history,
        max_tokens=max_tokens,
        stops=tuple(stop or ()),
        sampling=flags,
    )
    with Pack.open(pack) as opened:
        language = Language.of(opened)
        settings = Settings(_chosen(language, **flags), _longest(max_tokens, language), wanted.stops)
        with Engine.of(opened, opening.reserving(options, opened.model)) as engine:
            _say_notes(engine)
            opening.run(opened, engine, language, settings, wanted)


@app.command(epilog=EXIT_CODES)
@reported
def serve(
    pack: PackArgument,
    host: Annotated[str, _server(help="Listen here; another than this machine's own needs a key.")] = "127.0.0.1",
    port: Annotated[int, _server(min=0, max=65535, help="0 takes any that is free.")] = 8080,
    api_key: Annotated[
        str | None, _server(envvar="MOE_API_KEY", help="Clients must have it; a command line is seen by others.")
    ] = None,
    parallel: Annotated[int, _server(min=1, max=256, help="Requests computed together.")] = 4,
    queue: Annotated[int, _server(min=1, max=100_000, help="Requests that may wait; more are told to come back.")] = 32,
    prefix_memory: Annotated[str, _server(metavar="SIZE", help="Memory for prompts that were computed.")] = "256MB",
    state_dir: Annotated[
        Path | None, _server(metavar="DIR", help="Keep them on disk, too, so that a restart finds them.")
    ] = None,
    state_size: Annotated[str, _server(metavar="SIZE", help="Most that is kept there.")] = "10GB",
    experts_per_token: KOption = None,
    memory: MemoryOption = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = DEFAULTS.threads,
    context: ContextOption = None,
    chunk: ChunkOption = None,
    check_digests: DigestsOption = True,
    exact: ExactOption = False,
    access: AccessOption = None,
    backend: BackendOption = DEFAULTS.backend,
) -> None:
    """Answer over HTTP, as OpenAI's and Anthropic's clients ask, until Ctrl-C; see docs/server.md."""
    logbook, running, service, settings = _server_modules()
    chosen = settings.Settings(host, port, api_key, queue, parse_size(prefix_memory), state_dir, parse_size(state_size))
    options = EngineOptions(
        threads, _size(memory), slots, experts_per_token, chunk, context, check_digests, exact, access, backend
    )
    with (
        logbook.kept(),
        Pack.open(pack) as opened,
        running.listening(chosen) as bound,
        service.serving(opened, Language.of(opened), replace(options, sessions=parallel), chosen) as served,
    ):
        _say_notes(served.engine)
        running.run(served, bound, lambda: say(f"listening on {running.address(bound)}"))


def _server_modules() -> tuple[Any, Any, Any, Any]:
    """The server's modules, whose libraries are an extra."""
    try:
        from .server import logbook, running, service, settings
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise UnsupportedError("moe-run serve needs starlette and uvicorn: pip install '.[server]'") from error
    return logbook, running, service, settings


@app.command(epilog=EXIT_CODES)
@reported
def bench(
    pack: PackArgument,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens in the prompt.")] = 128,
    decode_tokens: Annotated[int, typer.Option(help="Random tokens decoded one by one.")] = 32,
    repetitions: Annotated[int, typer.Option(help="Repetitions, cold and warm; medians are shown.")] = 3,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Take a text's tokens, not random ones.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a trace of the warm answers, for Perfetto or chrome://tracing, and show what they asked of the"
            " GPU.",
        ),
    ] = None,
    experts_per_token: KOption = None,
    memory: MemoryOption = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = DEFAULTS.threads,
    context: ContextOption = None,
    chunk: ChunkOption = None,
    check_digests: DigestsOption = True,
    exact: ExactOption = False,
    access: AccessOption = None,
    backend: BackendOption = DEFAULTS.backend,
    json: JsonOption = False,
) -> None:
    """Measure prompt and decode speed, cold and warm, and how near they come to what storage and kernels allow."""
    options = EngineOptions(
        threads, _size(memory), slots, experts_per_token, chunk, context, check_digests, exact, access, backend
    )
    watch = UNWATCHED if trace is None else Watch(trace)
    with Pack.open(pack) as opened:
        tokens = None if text is None else Asked(prompt_file=text, raw=True).tokens(Language.of(opened))
        workload = Workload(prompt_tokens, decode_tokens, repetitions, opened.model.vocab_size, tokens)
        options = _long_enough(opened, options, workload.length)
        workload.check(plan_run(opened, options).context)
        files = [pack / layer.file for layer in opened.manifest.layers]
        drop, rate = partial(host.drop_cached, files), partial(disk_limit, opened)
        measured = measure(partial(Engine.of, opened, options), drop, workload, rate, watch)
    _say_notes(measured.engine)
    if json:
        print_json(report.bench_document(measured, workload, watch.costs))
    else:
        console.out.print(report.bench_table(str(pack), measured.figures))
        console.out.print(report.bench_remarks(measured, workload, watch.costs), markup=False)
    watch.write()


@app.command(epilog=EXIT_CODES)
@reported
def doctor(
    pack: PackArgument,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Plan for a published device instead, such as m3-max-48gb or iphone-17-pro."),
    ] = None,
    experts_per_token: KOption = None,
    memory: MemoryOption = None,
    slots: SlotsOption = None,
    threads: ThreadsOption = DEFAULTS.threads,
    context: ContextOption = None,
    chunk: ChunkOption = None,
    check_digests: DigestsOption = True,
    exact: ExactOption = False,
    access: AccessOption = None,
    backend: BackendOption = DEFAULTS.backend,
    json: JsonOption = False,
) -> None:
    """Show how a pack would run: memory by part, what was measured here, speeds to expect and what limits them."""
    options = EngineOptions(
        threads, _size(memory), slots, experts_per_token, chunk, context, check_digests, exact, access, backend
    )
    published = None if device is None else find_device(device)
    with Pack.open(pack) as opened:
        if published is None:
            found = diagnose(opened, options, tuning(opened, access))
        else:
            found = diagnose_for(opened, options, published)
    if json:
        print_json(report.diagnosis_document(found))
    else:
        console.out.print("\n".join(report.diagnosis_lines(str(pack), found)), markup=False)


def _long_enough(pack: Pack, options: EngineOptions, length: int) -> EngineOptions:
    """Options whose context holds `length` tokens, if the model's does and nobody asked for another."""
    if options.context is not None or plan_run(pack, options).context >= length:
        return options
    return replace(options, context=min(length, pack.model.max_position_embeddings))


def _chosen(language: Language, **flags: float | None) -> Sampling:
    """The pack's sampling with the flags that were given in its place; says what will not have an effect."""
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    settings = replace(language.sampling, **given)
    if settings.greedy and (idle := [name for name in given if name != "temperature"]):
        say(f"no effect without a temperature above 0: {', '.join(idle)}")
    if language.unsupported:
        say(f"the pack asks for {', '.join(language.unsupported)}, which is not applied")
    return settings


def _longest(given: int | None, language: Language) -> int:
    """The longest answer: the user's, else the pack's, else ours."""
    return next(size for size in (given, language.max_tokens, MAX_TOKENS) if size is not None)


def _show(answer: Generation, sampling: Sampling, engine: Engine, *, json: bool) -> None:
    """Print an answer as it comes, or its document at the end, and the statistics; leave with 130 if interrupted."""
    _stream(answer, _discard if json else _write)
    result = answer.result()
    if json:
        print_json(report.answer_document(result, sampling, engine))
    say(report.statistics_line(result, engine))
    if result.finish == "interrupted":
        raise typer.Exit(INTERRUPTED_EXIT_CODE)


def _stream(answer: Generation, write: Callable[[str], None]) -> None:
    """Write the pieces; an interrupt ends the answer, and what was held back still comes out."""
    try:
        for piece in answer:
            write(piece.text)
    except KeyboardInterrupt:
        for piece in answer.rest():
            write(piece.text)
    finally:
        text = answer.result().text
        if text and not text.endswith("\n"):
            write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _discard(text: str) -> None:
    pass


def _say_notes(engine: Engine) -> None:
    for note in report.notes(engine):
        say(note)


def _size(text: str | None) -> int | None:
    return None if text is None else parse_size(text)


def main() -> None:
    """The console script: errors become one sentence and an exit code."""
    bound_heap()
    command.main(app)

"""Coverage-guided fuzzing of one parser with atheris: `parsers.py NAME [options of libFuzzer]`; see `run.py`.

Only an error of ours may come out, whose sentence is one line. libFuzzer's own limits on memory and time hold besides.
"""

import json.decoder
import json.scanner
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

# Python's own JSON reader, instrumented, in place of C's, which could not guide anything.
json.decoder.scanstring = atheris.instrument_func(json.decoder.py_scanstring)  # type: ignore[attr-defined]
json.scanner.make_scanner = atheris.instrument_func(json.scanner.py_make_scanner)  # type: ignore[attr-defined]

with atheris.instrument_imports(include=["moepack", "rfc8785", "tomllib", "jinja2"]):
    from moepack.convert.calibration import header as calibration_header
    from moepack.convert.checkpoint import Checkpoint
    from moepack.convert.families import find_family
    from moepack.convert.recipefile import read_recipe
    from moepack.layout import tensorheader
    from moepack.manifests import canonical
    from moepack.manifests.errors import MoepackError
    from moepack.manifests.manifest import CHECKSUM, _checksum, parse_manifest
    from moepack.runtime.packfiles import LooseFiles
    from moepack.runtime.sampling import Sampling
    from moepack.runtime.template import ChatTemplate
    from moepack.runtime.tokenizer import Tokenizer

FOLDER = Path(tempfile.mkdtemp())
MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c", "tool_calls": None}]


def manifest(content: bytes) -> None:
    parse_manifest(content, "manifest.json")


def sealed(content: bytes) -> None:
    """A manifest whose canonical form and checksum are right, so that the schema and the rules are reached."""
    try:
        fields = canonical.decode(content, "manifest.json")
    except MoepackError:
        return
    if isinstance(fields, dict):
        try:
            fields[CHECKSUM] = _checksum(fields)
            content = canonical.encode(fields)
        except ValueError:
            return
        parse_manifest(content, "manifest.json")


def header(content: bytes) -> None:
    data_size, text = int.from_bytes(content[:3], "little"), content[3:]
    tensorheader.parse([text[at : at + 64] for at in range(0, len(text), 64)], len(text), data_size, "x.safetensors")


def checkpoint(content: bytes) -> None:
    index, _, config = content.partition(b"\0")
    (FOLDER / "config.json").write_bytes(config)
    (FOLDER / "model.safetensors.index.json").write_bytes(index)
    Checkpoint.open(str(FOLDER)).close()


def config(content: bytes) -> None:
    value = canonical.decode(content, "config.json")
    if isinstance(value, dict):
        find_family(value).geometry(value)
        Sampling.from_config(value, "generation_config.json")


def calibration(content: bytes) -> None:
    calibration_header.parse(content, "c.moecal")


def recipe(content: bytes) -> None:
    path = FOLDER / ("recipe.toml" if content[:1] == b"#" else "recipe.json")
    path.write_bytes(content)
    read_recipe(path)


def tokenizer(content: bytes) -> None:
    tokens, _, named = content.partition(b"\0")
    (FOLDER / "tokenizer.json").write_bytes(tokens)
    (FOLDER / "tokenizer_config.json").write_bytes(named or b"{}")
    opened = Tokenizer.open(LooseFiles(FOLDER), 512)
    stream = opened.stream()
    for token in opened.encode("a b", add_special_tokens=True):
        stream.push(token)
    stream.finish()


def template(content: bytes) -> None:
    text = content.decode("utf-8", "ignore")
    ChatTemplate({"default": text}, {"eos_token": "</s>"}, "chat_template.jinja").render(MESSAGES, tools=[{"a": [1]}])


PARSERS: dict[str, Callable[[bytes], None]] = {
    parser.__name__: parser
    for parser in (manifest, sealed, header, checkpoint, config, calibration, recipe, tokenizer, template)
}


def only_our_errors(parser: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def one(content: bytes) -> None:
        try:
            parser(content)
        except MoepackError as error:
            if "\n" in str(error):
                raise AssertionError(f"two lines: {error}") from error

    return one


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], only_our_errors(PARSERS[sys.argv[1]]))
    atheris.Fuzz()

"""docs/schemas: every report of both programs is what its published JSON Schema says, and nothing else would be."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import reports
import schemas
import typer
from checkpoints import CheckpointMaker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keys import keys_in
from packs import build_pack

from moepack.convert import cli as moe_pack
from moepack.convert import hub
from moepack.convert.shipped import CHECKPOINT
from moepack.manifests import names
from moepack.manifests import schema as manifest_schema
from moepack.runtime import cli as moe_run

SCHEMAS = {path.stem: json.loads(path.read_bytes()) for path in sorted(schemas.FOLDER.glob("*.json"))}
OF_COMMAND = {  # where a command's report has not the schema of its name
    "scrub": ["verify"],
    "demo": ["build"],
    "inspect": ["inspect", "inspect-calibration"],
}
WITHOUT_OPTION = {"recipe", "provenance"}  # which always write JSON


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: CheckpointMaker) -> dict[str, list[Any]]:
    """Real reports, by the names of their schemas."""
    folder = [tmp_path_factory.mktemp("reports") for _ in range(4)]
    keys = keys_in(folder[0] / "keys")
    build_pack(CHECKPOINT, folder[3] / "pack")
    found: dict[str, list[Any]] = {}
    for some in (
        reports.of_packs(folder[0], make_checkpoint, *keys),
        reports.of_calibrations(folder[1], make_checkpoint),
        reports.of_measurements(folder[2], make_checkpoint),
        reports.of_runs(folder[3] / "pack"),
    ):
        for name, report in some:
            found.setdefault("build" if name == "demo" else name, []).append(report)
    return found


def test_there_is_a_schema_of_every_report_and_no_other(samples: dict[str, list[Any]]) -> None:
    assert set(samples) == set(SCHEMAS)
    named = set(WITHOUT_OPTION)
    for program in (moe_pack, moe_run):
        for name, command in typer.main.get_command(program.app).commands.items():  # type: ignore[attr-defined]
            if any("--json" in parameter.opts for parameter in command.params):
                named.update(OF_COMMAND.get(name, [name]))
    assert named == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["title"].startswith("moe-")


@pytest.mark.parametrize("name", SCHEMAS)
def test_reports_are_what_their_schema_says(name: str, samples: dict[str, list[Any]]) -> None:
    for report in samples[name]:
        jsonschema.Draft202012Validator(SCHEMAS[name]).validate(report)


@pytest.mark.parametrize("name", SCHEMAS)
def test_other_reports_are_not(name: str, samples: dict[str, list[Any]]) -> None:
    """A field more, a field less, a field of another type: each at the top, where no schema leaves anything open."""
    judge = jsonschema.Draft202012Validator(SCHEMAS[name])
    report = samples[name][0]
    assert not judge.is_valid({**report, "surprise": 1})
    for field in SCHEMAS[name]["required"]:
        assert not judge.is_valid({key: value for key, value in report.items() if key != field}), field
        if field not in ("a", "b", "from"):
            assert not judge.is_valid({**report, field: {"no": ["such", "thing"]}}), field


def test_what_is_generated_is_up_to_date() -> None:
    """If not: `PYTHONPATH=tests python tests/schemas.py`."""
    for name, content in (schemas.generated() | schemas.bounded()).items():
        assert (schemas.FOLDER / f"{name}.json").read_text() == content, name


def test_the_page_of_schemas_names_each() -> None:
    page = (Path(schemas.FOLDER) / "README.md").read_text()
    assert all(f"`{name}.json`" in page for name in SCHEMAS)


def ours(pattern: str, most: int) -> st.SearchStrategy[str]:
    """Texts that a pattern takes, the same with something before or after, and any others."""
    taken = st.from_regex(pattern, fullmatch=True)
    odd = ["\n", "\r", "\0", " ", ".", "..", "/", "../", "\u2028", "é", "con", "NUL.txt", "x" * most, "x" * (most + 1)]
    strange = st.sampled_from(odd)
    mixed = st.tuples(strange, taken, strange).flatmap(lambda parts: st.sampled_from(list(map("".join, pairs(parts)))))
    return st.one_of(taken, mixed, strange, st.text(max_size=20))


def pairs(parts: tuple[str, str, str]) -> list[tuple[str, ...]]:
    return [parts, parts[:2], parts[1:]]


def is_path_of_a_pack(text: str) -> bool:
    return names.is_safe(text) or text in map(names.layer_file, range(4096))


def accepted(kind: Any, text: str) -> bool:
    try:
        msgspec.convert(text, kind)
    except msgspec.ValidationError:
        return False
    return True


def property_of(name: str, path: str) -> dict[str, Any]:
    schema: Any = SCHEMAS[name]
    for part in path.split("."):
        schema = schema[part] if part in schema else schema["properties"][part]
    return {key: schema[key] for key in ("pattern", "maxLength") if key in schema}


NAMED: list[tuple[str, str, str, int, Callable[[str], bool]]] = [
    ("provenance", "subject.items.name", f"{names.SAFE}|{names.LAYER}", 64, is_path_of_a_pack),
    ("repair", "$defs.Mended.file", f"{names.SAFE}|{names.LAYER}", 64, is_path_of_a_pack),
    ("lock", "repository", hub.REPOSITORY, 193, lambda text: "@" not in text and hub.is_repository_name(text)),
    ("plan", "source.repository", hub.REPOSITORY, 193, lambda text: "@" not in text and hub.is_repository_name(text)),
    ("inspect", "source.repository", hub.REPOSITORY, 256, partial(accepted, manifest_schema.Name)),
    ("inspect", "model.family", ".{0,256}", 256, partial(accepted, manifest_schema.Name)),
    (
        "provenance", "predicate.buildDefinition.resolvedDependencies.items.name", ".{0,255}", 255,
        partial(accepted, manifest_schema.SourceName),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path", "pattern", "most", "parsed"), NAMED, ids=[f"{one[0]} {one[1]}" for one in NAMED]
)
def test_schemas_and_parsers_take_the_same_names(
    name: str, path: str, pattern: str, most: int, parsed: Callable[[str], bool]
) -> None:
    published = property_of(name, path)
    assert published
    judge = jsonschema.Draft202012Validator({"type": "string", **published})

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ours(pattern, most))
    def agree(text: str) -> None:
        assert judge.is_valid(text) == parsed(text), ascii(text)

    agree()

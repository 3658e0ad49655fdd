"""Every rule of FORMAT.md about a manifest's fields together: manifests that break it, and some that just do not."""

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tinypack import build, tiny_plan

from moepack.manifests import names, rules
from moepack.manifests.errors import CorruptInputError
from moepack.manifests.schema import Manifest


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rules")
    return msgspec.to_builtins(build(folder / "pack", tiny_plan(folder)))


def edited(fields: dict[str, Any], edit: Callable[[Any], Any]) -> Manifest:
    changed = copy.deepcopy(fields)
    edit(changed)
    return msgspec.convert(changed, Manifest)


def put(path: str, value: Any) -> Callable[[Any], None]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def edit(node: Any) -> None:
        for part in parents:
            node = node[part]
        node[last] = value

    return edit


def swap(name: str) -> Callable[[Any], None]:
    def edit(fields: Any) -> None:
        resize_sums(fields, len(name) - len(fields["files"][1]["name"]))
        fields["files"][1]["name"] = name
        fields["files"].sort(key=lambda file: file["name"])

    return edit


def resize_sums(fields: Any, by: int) -> None:
    fields["files"][0]["size"] += by


def without_config(fields: Any) -> None:
    resize_sums(fields, -(64 + 2 + len(fields["files"].pop(1)["name"]) + 1))


def twin(fields: Any) -> None:
    fields["files"].append({**fields["files"][1], "name": fields["files"][1]["name"].upper()})
    fields["files"].sort(key=lambda file: file["name"])


def four_thousand_layers(fields: Any) -> None:
    fields["model"].update(layer_types=["full_attention"] * 4096, num_experts=513)
    fields["layers"] = fields["layers"][:1] * 4096


def overriding(*parts: list[Any]) -> Callable[[Any], None]:
    """Overrides for layers and projections in turn."""
    pairs = zip(parts[::2], parts[1::2], strict=True)
    coding = {"expert_format": "affine4-g32", "method": "mse"}
    return put("recipe.overrides", [{"layers": layers, "projections": names, **coding} for layers, names in pairs])


def parts_of(projection: str, *names: str) -> Callable[[Any], None]:
    """The three components of a projection of layer 0, renamed."""
    first = 3 * rules.PROJECTIONS.index(projection)

    def edit(fields: Any) -> None:
        for component, name in zip(fields["layers"][0]["components"][first:], names, strict=False):
            component["name"] = f"{projection}.{name}"

    return edit


UNSAFE_NAMES = (
    *("", ".", "..", "../config.json", "/etc/passwd", "a/b", "experts/layer_02.bin", "a\\b", "C:x", "a\0b", "a\nb"),
    *(".hidden", "-x", "a.", "a ", "con", "NUL.txt", "com1", "ä", "x" * 65, "~", "a:b", "config.json\n"),
    *("manifest.json", "Manifest.JSON", "EXPERTS"),
)
BROKEN: list[tuple[str, Callable[[Any], Any], str]] = [
    ("M6", put("model.num_experts_per_tok", 4), "4 experts per token of only 3"),
    ("M7", put("model.full_attention.num_kv_heads", 3), "2 heads do not share 3 key/value heads"),
    ("M7", put("model.linear_attention.num_key_heads", 3), "2 value heads do not share 3 key heads"),
    ("M7", put("model.full_attention.rotary_dims", 18), "18 rotary dimensions are not an even part of 16"),
    ("M7", put("model.full_attention.rotary_dims", 3), "3 rotary dimensions are not an even part of 16"),
    ("M8", put("model.rms_norm_eps", 0), "rms_norm_eps is 0"),
    ("M8", put("model.full_attention.rope_theta", -1.0), "rope_theta is -1.0"),
    ("M9", lambda m: m["layers"].pop(), "1 layer files for 2 layers"),
    ("M10", four_thousand_layers, "2101248 records"),
    ("M11", put("layers.0.file", "experts/layer_01.bin"), "layer 0 is in 'experts/layer_01.bin' instead of"),
    ("M11", put("layers.1.file", "../layer_01.bin"), "layer 1 is in '../layer_01.bin' instead of"),
    ("M11", put("layers.1.file", "/experts/layer_01.bin"), "layer 1 is in '/experts/layer_01.bin' instead of"),
    ("M12", lambda m: m["layers"][0]["formats"].pop("up"), r"layer_00.bin names the formats of \['down', 'gate'\]"),
    ("M13", lambda m: m["layers"][1]["components"].pop(), "layer_01.bin has components that no formats"),
    ("M13", lambda m: m["layers"][1]["components"].reverse(), "layer_01.bin has components that no formats"),
    ("M13", put("layers.0.components.3.name", "side.weight"), "layer_00.bin has components that no formats"),
    ("M13", parts_of("up", "weight", "grids", "biases"), "layer_00.bin has components that no formats"),
    ("M13", parts_of("up", "weight", "scales", "grids"), "layer_00.bin has components that no formats"),
    ("M13", parts_of("down", "grids", "weight", "scales"), "layer_00.bin has components that no formats"),
    ("M14", put("layers.0.components.1.offset", 260), "gate.scales of 64 bytes at 260, which do not follow byte 256"),
    ("M14", put("layers.0.components.1.offset", 0), "gate.scales of 64 bytes at 0, which do not follow byte 256"),
    ("M14", put("layers.0.components.8.size", 0), "down.biases of 0 bytes"),
    ("M15", put("layers.0.stride", 32768), "records of 1408 bytes every 32768 bytes"),
    ("M15", put("layers.0.stride", 1408), "records of 1408 bytes every 1408 bytes"),
    ("M15", put("layers.0.stride", 0), "records of 1408 bytes every 0 bytes"),
    ("M16", put("trunk.file", "../trunk.safetensors"), "the trunk is in '../trunk.safetensors' instead of"),
    ("M16", put("digests", "config.json"), "the record digests are in 'config.json' instead of"),
    *[("M17", swap(name), "is not a name that a file of a pack may have") for name in UNSAFE_NAMES],
    ("M18", lambda m: m["files"].append(m["files"][-1]), "'trunk.safetensors' is listed twice"),
    ("M18", twin, "'config.json' is listed twice"),
    ("M18", lambda m: m["files"].reverse(), "not in the order of their names"),
    ("M19", lambda m: m["files"].pop(2), "'digests.bin' is not among the files"),
    ("M19", lambda m: m["files"].pop(3), "'trunk.safetensors' is not among the files"),
    ("M19", lambda m: m["files"].pop(0), "'SHA256SUMS' is not among the files"),
    ("M19", put("files.2.size", 191), "'digests.bin' has 191 bytes instead of 192"),
    ("M19", lambda m: resize_sums(m, 1), r"'SHA256SUMS' has \d+ bytes instead of \d+"),
    ("M19", lambda m: m["files"].pop(1), r"'SHA256SUMS' has \d+ bytes instead of \d+"),
    ("M20", overriding([2], ["gate"]), "the recipe overrides layer 2 of a model of 2 layers"),
    ("M20", overriding([0, 1, 0], ["gate"]), "the recipe overrides gate of layer 0 twice"),
    ("M20", overriding([0], ["up", "down"], [1, 0], ["gate", "down"]), "overrides down of layer 0 twice"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "edit", "sentence"), BROKEN)
def test_a_broken_rule_is_named(fields: dict[str, Any], number: str, edit: Callable[[Any], Any], sentence: str) -> None:
    with pytest.raises(CorruptInputError, match=sentence) as caught:
        rules.check(edited(fields, edit), "pack/manifest.json")
    assert str(caught.value).startswith("pack/manifest.json: ")
    assert str(caught.value).endswith(f"({number})")


NEAR_MISSES: list[Callable[[Any], Any]] = [
    put("model.num_experts_per_tok", 3),
    put("model.full_attention.num_kv_heads", 2),
    put("model.full_attention.rotary_dims", 16),
    put("model.rms_norm_eps", 5e-324),
    swap("a"),
    swap("_"),
    swap("console.json"),
    swap("a" * 64),
    without_config,
    parts_of("gate", "weight", "grids", "scales"),
    parts_of("down", "weight", "grids", "scales"),
    overriding([0, 1], ["gate"], [1], ["up", "down"]),
]


@pytest.mark.parametrize("edit", NEAR_MISSES)
def test_what_just_keeps_the_rules_is_accepted(fields: dict[str, Any], edit: Callable[[Any], Any]) -> None:
    rules.check(edited(fields, edit), "manifest.json")


def test_every_rule_is_broken_by_a_test() -> None:
    assert {number for number, _, _ in BROKEN} == set(rules.RULES)


def test_layer_files_sort_and_grow() -> None:
    assert [names.layer_file(index) for index in (0, 59, 100)] == [
        "experts/layer_00.bin",
        "experts/layer_59.bin",
        "experts/layer_100.bin",
    ]

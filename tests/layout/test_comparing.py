"""What differs between two packs, and why."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tinypack import Content, edit_manifest, replace_file, tiny_model, tiny_plan, write_missing

from moepack.layout.comparing import Located, locate
from moepack.layout.plan import PackPlan
from moepack.layout.writer import PackWriter
from moepack.manifests import schema


@pytest.fixture
def plan(tmp_path: Path) -> PackPlan:
    return tiny_plan(tmp_path)


def made(target: Path, plan: PackPlan, **changed: Any) -> Path:
    with PackWriter.open(target, plan) as writer:
        write_missing(writer, Altered(plan, **changed))
    return target


class Altered(Content):
    """Content in which some bytes differ."""

    def __init__(self, plan: PackPlan, records: dict[tuple[int, int], int] | None = None, tensor: str = "") -> None:
        super().__init__(plan)
        object.__setattr__(self, "records", records or {})
        object.__setattr__(self, "altered", tensor)

    def record(self, layer: int, expert: int) -> Any:
        record = super().record(layer, expert)
        if (layer, expert) in self.records:  # type: ignore[attr-defined]
            record[self.records[layer, expert]] ^= 1  # type: ignore[attr-defined]
        return record

    def tensor(self, spec: Any) -> Any:
        values = super().tensor(spec)
        return values + values.dtype.type(1) if spec.name == self.altered else values  # type: ignore[attr-defined]


def test_equal_packs_are_identical(tmp_path: Path, plan: PackPlan) -> None:
    found = locate(made(tmp_path / "a", plan), made(tmp_path / "b", plan))
    assert found.difference.identical
    assert found == Located(found.difference, [], [], 0)
    assert found.difference.meaning == []


def test_other_bytes_are_located(tmp_path: Path, plan: PackPlan) -> None:
    up = plan.records[1]["up.scales"].offset
    a = made(tmp_path / "a", plan)
    b = made(tmp_path / "b", plan, records={(1, 0): 3, (1, 2): up, (0, 1): up}, tensor="lm_head.scales")
    found = locate(a, b)
    assert found.difference.meaning == ["bytes"]
    assert [(one.layer, one.components, one.experts) for one in found.difference.layers] == [
        (0, ["up.scales"], [1]),
        (1, ["gate.weight", "up.scales"], [0, 2]),
    ]
    told = {(record.layer, record.expert): record.components for record in found.records}
    assert told == {(0, 1): ["up.scales"], (1, 0): ["gate.weight"], (1, 2): ["up.scales"]}
    assert found.records_left == 0
    assert [change.field for change in found.tensors] == ["lm_head.scales"]
    assert [change.field for change in found.difference.files] == [
        "SHA256SUMS",
        "digests.bin",
        "trunk.safetensors",
    ]


def test_layers_are_not_read_where_digests_tell(
    tmp_path: Path, plan: PackPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = made(tmp_path / "a", plan), made(tmp_path / "b", plan, records={(1, 0): 3, (0, 1): 3})
    monkeypatch.setattr("moepack.layout.reader.Pack.stored_record", lambda *_: pytest.fail("a record was read"))
    assert [(one.layer, one.expert, one.components) for one in locate(a, b).records] == [
        (0, 1, ["gate.weight"]),
        (1, 0, ["gate.weight"]),
    ]


def test_another_recipe_names_its_fields(tmp_path: Path, plan: PackPlan) -> None:
    other = tiny_plan(tmp_path, formats=dict.fromkeys(("gate", "up", "down"), "affine3-g32"))
    other = replace(other, recipe=schema.Recipe("affine3-g32", "mse", "source", 1))
    found = locate(made(tmp_path / "a", plan), made(tmp_path / "b", other)).difference
    assert found.meaning == ["recipe"]
    assert [(one.field, one.a, one.b) for one in found.recipe] == [
        ("expert_format", "affine2-g32", "affine3-g32"),
        ("method", "minmax", "mse"),
    ]
    assert [one.components for one in found.layers] == [None, None]
    assert [change.field for change in found.layers[0].formats] == ["down", "gate", "up"]


@pytest.mark.parametrize(
    ("source", "meaning", "field"),
    [
        ({"files": [schema.SourceFile("model.safetensors", 1234, "cd" * 32, "ef" * 32)]}, "source", "header_blake3"),
        ({"files": [schema.SourceFile("model.safetensors", 99, "ab" * 32, "ef" * 32)]}, "source", "size"),
        (
            {"files": [schema.SourceFile("other.safetensors", 1234, "ab" * 32, "ef" * 32)]},
            "source",
            "other.safetensors",
        ),
        ({"dialect": "huggingface"}, "source", "dialect"),
        ({"repository": "org/name", "revision": "main"}, "origin", "repository"),
    ],
)
def test_another_source_names_its_files(
    tmp_path: Path, plan: PackPlan, source: dict[str, Any], meaning: str, field: str
) -> None:
    told = {"dialect": "mlx", "repository": None, "revision": None, "files": plan.source.files} | source
    other = replace(plan, source=schema.Source(**told))
    found = locate(made(tmp_path / "a", plan), made(tmp_path / "b", other)).difference
    assert found.meaning == [meaning]
    assert any(field in change.field for change in found.source)
    assert found.layers == []


def test_another_model_is_said_to_be_one(tmp_path: Path, plan: PackPlan) -> None:
    other = tiny_plan(tmp_path, tiny_model(layers=4, experts=2))
    found = locate(made(tmp_path / "a", plan), made(tmp_path / "b", other))
    assert found.difference.meaning == ["model"]
    assert {"num_experts", "layer_types"} <= {change.field for change in found.difference.model}


def test_another_tokenizer_is_not_other_bytes(tmp_path: Path, plan: PackPlan) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = tiny_plan(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    found = locate(made(tmp_path / "a", plan), made(tmp_path / "b", replace(other))).difference
    assert found.meaning == ["files"]
    assert [change.field for change in found.files] == ["SHA256SUMS", "config.json"]


def test_damaged_record_digests_leave_experts_open(tmp_path: Path, plan: PackPlan) -> None:
    a, b = made(tmp_path / "a", plan), made(tmp_path / "b", plan, records={(1, 0): 3})
    replace_file(b / "digests.bin", bytes(192))
    found = locate(a, b)
    assert [(one.layer, one.components, one.experts) for one in found.difference.layers] == [(1, ["gate.weight"], None)]
    assert any("which experts differ cannot be told" in remark for remark in found.difference.remarks)


def test_only_the_manifests_form_may_differ(tmp_path: Path, plan: PackPlan) -> None:
    a, b = made(tmp_path / "a", plan), made(tmp_path / "b", plan)
    edit_manifest(b, lambda fields: fields["trunk"].update(formats={}))
    assert locate(a, b).difference.meaning == ["form"]

"""The predicted timeline: counts against tensors and hand-worked sizes, limits, and the page that is kept."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from extended import timeline as script
from packs import build_with
from tinypack import tiny_model

from moepack.convert.recipe import Recipe
from moepack.convert.shipped import CHECKPOINT
from moepack.layout.formats import AffineFormat, parse
from moepack.layout.plan import expert_shape
from moepack.layout.reader import Pack
from moepack.layout.record import RecordLayout
from moepack.runtime import forecast, report, timeline
from moepack.runtime.cli import main
from moepack.runtime.devices import DEVICES, Device, device
from moepack.runtime.timeline import Name, Part, Sizes, Timeline, layer_work, once_work, predict

MAC = device("m3-max-48gb")
ROUND = replace(MAC, memory_gigabytes_per_second=1.0, disk_gigabytes_per_second=1.0, gpu_teraflops=None)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    target = tmp_path_factory.mktemp("packs") / "pack"
    build_with(CHECKPOINT, target, Recipe())
    with Pack.open(target) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny() -> Sizes:
    """Two layers, hidden 32, whose trunk tensors have sizes that tell them apart in a sum."""
    model = tiny_model()
    layout = RecordLayout.of(expert_shape(model), dict.fromkeys(("gate", "up", "down"), parse("affine2-g32")))
    layer = ("input_layernorm.weight", "post_attention_layernorm.weight", "mlp.gate.weight", "mlp.gate.scales")
    shared = ("mlp.shared_expert.up_proj.weight", "mlp.shared_expert_gate.weight")
    first, second = ("linear_attn.A_log", "linear_attn.out_proj.weight"), ("self_attn.q_proj.weight",)
    names = [f"model.layers.0.{name}" for name in (*layer, *shared, *first)]
    names += [f"model.layers.1.{name}" for name in (*layer, *shared, *second)]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    return Sizes(model, (layout, layout), {name: 10 * 2**i for i, name in enumerate(names)})


def parts(found: Timeline) -> dict[Name, Part]:
    return {part.name: part for part in found.parts}


def test_the_parts_of_a_small_model_by_hand(tiny: Sizes) -> None:
    """Delta: 1 key and 2 value heads of 8, 32 channels, kernel 4; attention: 2 heads and 1 key head of 16."""
    work = dict(layer_work(tiny, 0, experts_per_token=2, position=9))
    state = 4 * (3 * 32 + 2 * 8 * 8)
    assert work["delta"].bytes == 10 * (1 + 64 + 128) + 2 * state
    assert work["delta"].operations == 2 * 32 * (32 + 16 + 2 + 2 + 16) + 2 * 4 * 32 + 7 * 2 * 8 * 8
    assert work["router"].bytes == 10 * (2 + 4 + 8)
    assert work["router"].operations == 2 * 3 * 32
    assert work["shared"].bytes == 10 * (16 + 32)
    assert work["shared"].operations == 2 * (3 * 32 * 32 + 32)
    assert work["experts"].bytes == 2 * 3 * (32 * 32 * 2 // 8 + 2 * 2 * 32)
    assert work["experts"].operations == 2 * 2 * 3 * 32 * 32
    assert work["combine"].bytes == (2 + 1 + 2) * 32 * 4
    assert work["combine"].operations == 2 * 3 * 32
    attention = dict(layer_work(tiny, 1, 2, position=9))["attention"]
    assert attention.bytes == 10 * (2**8 + 2**14) + 11 * 2 * 16 * 4  # ten positions read, one of them written before
    assert attention.operations == 2 * 32 * (64 + 16 + 16 + 32) + 10 * 2 * (2 * 32)
    once = dict(once_work(tiny))
    assert once["embedding"].bytes == 10 * 2**15 / 5
    assert (once["head"].bytes, once["head"].operations) == (10 * (2**16 + 2**17), 2 * 5 * 32)


def test_a_tied_head_reads_the_table_of_embeddings(tiny: Sizes) -> None:
    fields = {name: getattr(tiny.model, name) for name in tiny.model.__struct_fields__}
    tied = Sizes(type(tiny.model)(**{**fields, "tie_word_embeddings": True}), tiny.records, tiny.trunk)
    assert dict(once_work(tied))["head"].bytes == 10 * (2**16 + 2**15)


def test_a_pack_s_weights_are_counted_once_each_and_all_of_them(pack: Pack) -> None:
    """Without states, caches and combining, a token moves what the forecast says that it reads."""
    sizes, k = Sizes.of(pack), 3
    moved = sum(work.bytes for _, work in once_work(sizes))
    layers = [dict(layer_work(sizes, i, k, position=0)) for i in range(pack.model.num_layers)]
    moved += sum(work.bytes for layer in layers for name, work in layer.items() if name not in ("combine", "experts"))
    states = 2 * timeline.recurrent_bytes(pack.model) + 2 * timeline.position_bytes(pack.model)
    assert moved - states == pytest.approx(forecast.trunk_read(pack), abs=1)
    assert sum(layer["experts"].bytes for layer in layers) == k * sum(record.size for record in pack.records)


def test_products_are_two_operations_for_every_weight_of_every_matrix(pack: Pack) -> None:
    """Weights counted from the stored tensors; what is left besides is convolution, attention and delta rule."""
    sizes, model, k = Sizes.of(pack), pack.model, 2
    matrices = sum(map(weights_of, pack.trunk.entries, [pack] * len(pack.trunk.entries)))
    experts = k * 3 * model.hidden_size * model.moe_intermediate_size * model.num_layers
    delta, full = model.linear_attention, model.full_attention
    kinds = [model.layer_types.count(kind) for kind in ("linear_attention", "full_attention")]
    cells = delta.num_value_heads * delta.key_head_dim * delta.value_head_dim
    channels = 2 * delta.num_key_heads * delta.key_head_dim + delta.num_value_heads * delta.value_head_dim
    besides = kinds[0] * (7 * cells + 2 * 4 * channels) + kinds[1] * 4 * full.num_heads * full.head_dim
    combine = 2 * (k + 1) * model.hidden_size * model.num_layers
    found = parts(predict(sizes, MAC, k, 0.0, "", position=0))
    total = sum(part.operations for part in found.values())
    assert total == 2 * (matrices + experts) + besides + combine


def weights_of(name: str, pack: Pack) -> int:
    """The weights of a matrix that a token is multiplied with: not those of norms, convolutions, the embeddings."""
    shape = pack.trunk.entries[name].shape
    stem = name.removesuffix(".weight")
    embedding = name.startswith("model.embed_tokens") and not pack.model.tie_word_embeddings
    if not name.endswith(".weight") or len(shape) < 2 or name.endswith("conv1d.weight") or embedding:
        return 0
    stored = pack.manifest.trunk.formats.get(stem)
    return prod(shape) * (32 // AffineFormat.parse(stored).bits if stored else 1)


def test_a_part_takes_as_long_as_the_slower_of_moving_and_computing(tiny: Sizes) -> None:
    memory, both = ROUND, replace(ROUND, gpu_teraflops=1e-9)
    moving, computing = parts(predict(tiny, memory, 2, 0.5, "")), parts(predict(tiny, both, 2, 0.5, ""))
    assert moving["experts"].seconds == pytest.approx(moving["experts"].bytes / 1e9)
    assert computing["experts"].seconds == pytest.approx(computing["experts"].operations / 1e3)
    assert computing["embedding"].seconds == moving["embedding"].seconds > 0
    assert moving["reads"].seconds == pytest.approx(0.5 * 2 * 2 * 16384 / 1e9)
    assert moving["host"].seconds == 2 * timeline.ROUND_TRIP_SECONDS


def test_only_the_shorter_of_shared_expert_and_wait_is_saved(tiny: Sizes) -> None:
    waiting = predict(tiny, MAC, 2, 0.0, "")
    assert waiting.hidden_seconds == pytest.approx(parts(waiting)["shared"].seconds)
    slow = predict(tiny, replace(MAC, memory_gigabytes_per_second=1e-4), 2, 0.0, "")
    found = parts(slow)
    assert found["shared"].seconds > found["host"].seconds + found["reads"].seconds
    assert slow.hidden_seconds == pytest.approx(found["host"].seconds + found["reads"].seconds)
    for each in (waiting, slow):
        assert each.seconds == pytest.approx(sum(part.seconds for part in each.parts) - each.hidden_seconds)
        once = sum(part.seconds for part in each.parts if part.name in ("embedding", "head"))
        assert each.layer_seconds * 2 == pytest.approx(each.seconds - once)
        assert each.tokens_per_second == 1 / each.seconds


def test_what_is_in_memory_is_not_read_and_its_computing_is_not_saved(tiny: Sizes) -> None:
    nothing, everything = predict(tiny, MAC, 2, 0.0, ""), predict(tiny, MAC, 2, 1.0, "")
    assert (parts(everything)["reads"].bytes, parts(everything)["reads"].seconds) == (0, 0)
    assert parts(nothing)["reads"].bytes == 2 * 2 * 16384
    assert parts(nothing)["experts"] == parts(everything)["experts"]


@pytest.mark.parametrize(
    "better",
    [
        {"memory_gigabytes_per_second": 800},
        {"disk_gigabytes_per_second": 35.0},
        {"gpu_teraflops": 0.002},
    ],
)
def test_a_better_device_is_predicted_to_be_faster(tiny: Sizes, better: dict[str, Any]) -> None:
    base = replace(MAC, gpu_teraflops=0.001)  # so that it limits somewhere
    assert predict(tiny, replace(base, **better), 2, 0.0, "").seconds < predict(tiny, base, 2, 0.0, "").seconds


def test_more_hits_are_faster_and_more_experts_or_positions_slower(tiny: Sizes) -> None:
    by_hits = [predict(tiny, ROUND, 2, share / 10, "").seconds for share in range(11)]
    by_experts = [predict(tiny, ROUND, k, 0.5, "").seconds for k in (1, 2, 3)]
    by_position = [predict(tiny, ROUND, 2, 0.5, "", position).seconds for position in (0, 100, 10_000)]
    assert by_hits == sorted(by_hits, reverse=True)
    assert by_experts == sorted(by_experts)
    assert by_position == sorted(by_position)
    assert min(map(len, map(set, (by_hits, by_experts, by_position)))) >= 3


@pytest.mark.parametrize("each", [each for each in DEVICES if each.gpu_teraflops], ids=lambda each: each.name)
def test_a_peak_has_a_source_and_never_limits_decoding_of_the_wide_model(each: Device) -> None:
    assert each.gpu_source
    sizes = script.counted()
    assert predict(sizes, each, 10, 0.0, "") == predict(sizes, replace(each, gpu_teraflops=None), 10, 0.0, "")


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["moe-run", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(leaving.value.code or 0)


def test_the_doctor_shows_it_for_apple_devices_as_a_prediction(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, pack.path, "--device", "m3-max-48gb", "--context", 100, "--experts-per-token", 3) == 0
    shown = capsys.readouterr().out
    assert report.PREDICTED in shown
    assert "PREDICTION" in report.PREDICTED
    assert timeline.ROUND_TRIP_SOURCE in shown
    assert shown.count(", combine ") == 2
    assert called(monkeypatch, pack.path, "--device", "rtx-4090-24gb") == 0
    assert "timeline" not in capsys.readouterr().out


def test_the_doctor_s_document_has_every_part_with_the_forecast_s_hits(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--memory", "150MB", "--slots", 64, "--context", 100, "--json")
    assert called(monkeypatch, pack.path, "--device", "iphone-17-pro", *options) == 0
    document = json.loads(capsys.readouterr().out)
    for decode, shown in zip(document["decode"], document["predicted_timelines"], strict=True):
        k = document["per_token"]["experts_per_token"]
        found = predict(Sizes.of(pack), device("iphone-17-pro"), k, decode["hit_rate"], decode["assumption"], 99)
        assert 0 < shown["hit_rate"] == decode["hit_rate"] < 1
        assert shown["seconds"] == found.seconds
        assert [part["name"] for part in shown["parts"]] == [part.name for part in found.parts]


def test_the_page_is_what_the_script_writes() -> None:
    assert script.PAGE.read_text() == script.page(script.counted()), "make timeline writes it anew"


def test_the_page_counts_the_pack_that_the_readme_names() -> None:
    sizes = script.counted()
    assert {record.stride for record in sizes.records} == {3_948_544}
    assert sum(sizes.trunk.values()) == pytest.approx(5.58e9, rel=1e-3)
    assert (
        Path(script.PAGE)
        .read_text()
        .startswith("# A predicted timeline\n\n**Everything of moepack's on this page is a")
    )

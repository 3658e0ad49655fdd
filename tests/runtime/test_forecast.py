"""Forecasts against numbers worked out by hand from the model's published sizes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tinypack import build, tiny_model, tiny_plan

from moepack.layout.reader import Pack
from moepack.runtime import forecast
from moepack.runtime.forecast import Demand, Rates

RECORD = 3_932_160  # an expert of the 397B model in affine2-g64
LAYERS, EXPERTS = 60, 512


def wide(k: int = 10, trunk: int = 5_000_000_000) -> Demand:
    return Demand(trunk, k * LAYERS * RECORD, LAYERS, EXPERTS, k)


def rate(demand: Demand, slots: int, rates: Rates) -> float:
    found = forecast.forecasts(demand, slots, rates)[0].tokens_per_second
    assert found is not None
    return found


def test_the_397b_model_reads_236_gb_per_token_in_all() -> None:
    assert wide().experts == 2_359_296_000
    assert wide().all_experts == 120_795_955_200


@pytest.mark.parametrize(
    ("disk", "k", "expected"),
    [
        (17.3, 10, 7.3),
        (17.3, 8, 9.2),
        (17.3, 6, 12.2),
        (17.3, 4, 18.3),
        (12.8, 10, 5.4),
        (7.0, 8, 3.7),
        (3.0, 10, 1.27),
    ],
)
def test_decoding_without_slots_is_what_the_disk_allows(disk: float, k: int, expected: float) -> None:
    found = forecast.forecasts(wide(k), 0, Rates(disk, 400))[0]
    assert found.tokens_per_second == pytest.approx(expected, rel=0.01)
    assert (found.limit, found.hit_rate, found.bytes_missed) == ("disk", 0, wide(k).experts)


def test_the_slower_of_disk_and_memory_decides_and_compute_when_kernels_are_slower_than_memory() -> None:
    demand = wide(4)
    in_memory = forecast.forecasts(demand, LAYERS * EXPERTS, Rates(17.3, 100))[0]
    assert (in_memory.hit_rate, in_memory.bytes_missed, in_memory.limit) == (1, 0, "memory bandwidth")
    assert in_memory.tokens_per_second == pytest.approx(100e9 / (5_000_000_000 + 943_718_400))
    slow = forecast.forecasts(demand, LAYERS * EXPERTS, Rates(17.3, 100, kernels=10))[0]
    assert slow.limit == "compute"
    assert slow.tokens_per_second == pytest.approx(1 / (0.05 + 0.0943718400))
    assert forecast.forecasts(demand, 0, Rates(None, None))[0].limit is None


def test_slots_that_do_not_hold_one_token_are_no_help_and_then_help_in_proportion() -> None:
    assert forecast.uniform_hits(wide(), LAYERS * 10 - 1) == 0
    assert forecast.local_hits(wide(), LAYERS * 10 - 1) == 0
    assert forecast.uniform_hits(wide(), LAYERS * 128) == 0.25
    assert forecast.uniform_hits(wide(), LAYERS * EXPERTS) == 1


@pytest.mark.parametrize(("slots", "hits"), [(16, 0.49), (32, 0.59), (64, 0.68), (128, 0.71), (512, 1.0)])
def test_locality_is_the_measured_curve_where_it_was_measured(slots: int, hits: float) -> None:
    assert forecast.local_hits(wide(4), LAYERS * slots) == pytest.approx(hits)


def test_more_slots_are_never_forecast_to_be_slower() -> None:
    for assumption in (0, 1):
        rates = [
            forecast.forecasts(wide(), slots, Rates(7, 100))[assumption].tokens_per_second
            for slots in range(0, LAYERS * EXPERTS + 1, LAYERS)
        ]
        assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("chunk", "disk", "expected"), [(512, 17.3, 73), (2048, 17.3, 293), (2048, 7, 119), (2048, 3, 51), (4096, 7, 237)]
)
def test_prefill_ceilings_by_chunk(chunk: int, disk: float, expected: float) -> None:
    assert forecast.prefill_ceiling(wide(), 0, chunk, disk) == pytest.approx(expected, rel=0.01)


def test_a_short_prompt_reads_only_the_experts_it_needs() -> None:
    """20 tokens need 167 of the 512 experts of a layer: 39 GB, 2.3 s at 17.3 GB/s."""
    found = forecast.prefill_ceiling(wide(), 0, 20, 17.3)
    assert found == pytest.approx(20 / 2.3, rel=0.02)
    assert forecast.prefill_ceiling(wide(), LAYERS * EXPERTS, 20, 17.3) is None


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Pack]:
    build(tmp_path / "pack", tiny_plan(tmp_path, tiny_model(layers=2, experts=9)))
    with Pack.open(tmp_path / "pack") as opened:
        yield opened


def test_a_packs_demand_is_its_records_and_its_trunk_but_for_the_embeddings(pack: Pack) -> None:
    """The trunk by hand: norm 128, head 80 + 10 + 10, A_log 8, and one of the 5 rows of 64 bytes of the embeddings."""
    demand = Demand.of(pack, experts_per_token=2)
    assert demand.trunk == 128 + 80 + 10 + 10 + 8 + 64
    assert demand.experts == 2 * sum(record.stride for record in pack.records)
    assert (demand.layers, demand.experts_per_layer) == (2, 9)

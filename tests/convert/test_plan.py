"""What plan promises is what build writes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from checkpoints import NARROW, ODD, CheckpointMaker, Variant
from packs import build_pack

from moepack.convert import estimate as estimates
from moepack.convert.checkpoint import Checkpoint
from moepack.convert.estimate import estimate
from moepack.convert.facts import of_plan
from moepack.convert.plan import Packing, lay_out, plan_pack, understand
from moepack.convert.recipe import Coding, Recipe
from moepack.convert.report import plan_table
from moepack.layout.formats import parse
from moepack.manifests.errors import UsageError
from moepack.quantize.calibration import InputStatistics
from moepack.quantize.feedback import Feedback


def planned(checkpoint: Path, recipe: Recipe) -> Packing:
    with Checkpoint.open(str(checkpoint)) as opened:
        return plan_pack(understand(opened), recipe)


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("variant", "recipe"),
    [
        (Variant(), ("affine2-g64", "mse", "source")),
        (Variant(shape=ODD, fused=True, vision=True), ("affine4-g32", "minmax", "affine8-g64")),
        (Variant(dialect="mlx", bits=4), ("affine4-g64", "mse", "bf16")),
        (Variant(shape=NARROW), ("affine3-g32", "mse", "affine4-g64")),
    ],
)
def test_every_size_is_known_beforehand(
    variant: Variant, recipe: tuple[str, str, str], make_checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    checkpoint, target = make_checkpoint(variant), tmp_path / "pack"
    facts = of_plan(
        packing := planned(checkpoint, Recipe.parse(*recipe)), None, estimate(packing, 2, tmp_path), tmp_path
    )
    build_pack(checkpoint, target, expert_format=recipe[0], method=recipe[1], trunk=recipe[2])
    assert facts["experts"]["bytes"] == size_of(target / "experts")
    assert facts["trunk"]["bytes"] == (target / "trunk.safetensors").stat().st_size
    assert facts["digests_bytes"] == (target / "digests.bin").stat().st_size
    assert facts["total_bytes"] == size_of(target) - (target / "manifest.json").stat().st_size
    assert facts["experts"]["records"] * facts["experts"]["record_bytes"] == facts["experts"]["bytes"]
    assert facts["experts"]["record_bytes"] % facts["experts"]["alignment_bytes"] == 0
    assert facts["disk"]["fits"]
    json.dumps(facts)
    assert len(plan_table(facts).plain.splitlines()) > 5


def test_passing_through_takes_as_long_as_the_disks(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Variant(dialect="mlx", bits=4))
    passing = estimate(planned(checkpoint, Recipe.parse("affine4-g64", "mse", "source")), 2, tmp_path)
    assert passing.quantizing_seconds == 0
    assert passing.seconds == passing.disk_seconds > 0
    coding = estimate(planned(checkpoint, Recipe()), 2, tmp_path)
    assert coding.expert_weights_per_second is not None
    assert coding.seconds >= coding.quantizing_seconds > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trunk", ["affine4-g64", "affine8-g64"])
def test_each_trunk_matrix_is_timed_as_what_it_becomes(
    trunk: str, make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = planned(make_checkpoint(Variant()), Recipe.parse("affine2-g64", "mse", trunk))
    rates = {"affine2-g64": 7.0, "affine4-g64": 5.0, "affine8-g64": 3.0}
    monkeypatch.setattr(estimates, "measure", lambda kind, _: rates[kind.coding.format.name])
    found = estimate(packing, 1, tmp_path)
    weights = dict.fromkeys(rates, 0)
    for tensor in packing.plan.trunk:
        if (stem := tensor.name.removesuffix(".weight")) in packing.plan.trunk_formats:
            name = packing.plan.trunk_formats[stem]
            weights[name] += math.prod(tensor.shape) * 32 // parse(name).bits
    assert (weights["affine4-g64"] > 0) == (trunk == "affine4-g64")
    assert weights["affine8-g64"] > 0
    weights["affine2-g64"] = 3 * packing.projection_weights * packing.source.model.num_layers
    assert found.quantizing_seconds == pytest.approx(sum(count / rates[name] for name, count in weights.items()))
    assert found.expert_weights_per_second == pytest.approx(7.0)


def test_a_hessian_is_counted_once_for_each_experts_inputs(
    make_checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoint.open(str(make_checkpoint(Variant()))) as opened:
        packing = lay_out(understand(opened), Recipe.parse("affine2-g64", "gptq", "source"))
    model, nothing = packing.source.model, InputStatistics(np.ones(1, np.float32))
    seconds = {model.hidden_size: 5.0, model.moe_intermediate_size: 0.25}
    assert len(seconds) == 2
    monkeypatch.setattr(estimates, "prepare", lambda inputs: (nothing, seconds[inputs.cols]))
    monkeypatch.setattr(estimates, "measure", lambda _, statistics: 100.0 if statistics is nothing else math.nan)
    weights = 3 * packing.projection_weights * model.num_layers
    wanted = weights / 100 + model.num_experts * model.num_layers * sum(seconds.values())
    found = estimate(packing, 1, tmp_path)
    assert found.quantizing_seconds == pytest.approx(wanted)
    assert found.expert_weights_per_second == pytest.approx(weights / wanted)


def test_a_factorised_hessian_is_not_factorised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics, seconds = estimates.prepare(estimates.Inputs(256, own=True))
    assert seconds > 0
    monkeypatch.setattr(Feedback, "of", lambda _: pytest.fail("it was"))
    assert estimates.measure(estimates.Kind(None, Coding(parse("affine2-g64"), "gptq"), 256), statistics) > 0


def test_where_nothing_may_be_written_reading_counts(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    found = estimate(planned(make_checkpoint(Variant()), Recipe()), 2, tmp_path / "nowhere")
    assert found.writing_rate is None
    assert found.disk_seconds > 0


def test_planning_writes_nothing(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    checkpoint = make_checkpoint.copy(Variant(), tmp_path / "checkpoint")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in checkpoint.iterdir())
    planned(checkpoint, Recipe())
    assert sorted((path.name, path.stat().st_mtime_ns) for path in checkpoint.iterdir()) == before


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("affine5-g64", "mse", "source"), "affine2-g64"),
        (("2bit", "mse", "source"), "affine2-g64"),
        (("affine2-g64", "awq", "source"), "minmax, mse"),
        (("affine2-g64", "mse", "affine2-g64"), "source, bf16"),
    ],
)
def test_unknown_names_in_a_recipe_list_the_choices(names: tuple[str, str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Recipe.parse(*names)


def test_groups_that_do_not_divide_are_refused_naming_those_that_do(make_checkpoint: CheckpointMaker) -> None:
    checkpoint = make_checkpoint(Variant(shape=NARROW))
    with pytest.raises(UsageError, match=r"formats that fit this model are affine2-g32, .*book3-g16$"):
        planned(checkpoint, Recipe.parse("affine2-g64", "mse", "source"))
    with pytest.raises(UsageError, match="has 96 inputs"):
        planned(checkpoint, Recipe.parse("affine4-g128", "mse", "source"))

"""The engine on real packs: right to float64 numpy, and bit for bit the same however the work is cut up."""

import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import NARROW, ODD, TINY, CheckpointMaker, Shape, Variant
from kernel_sets import KERNEL_SETS, run_on
from packs import build_pack
from reference import Reference

from moepack.layout.reader import Pack
from moepack.manifests.errors import CorruptInputError, MismatchError, UsageError
from moepack.runtime import _native
from moepack.runtime.engine import Engine, EngineOptions, plan_run
from moepack.runtime.state import State, position_bytes

TIED = Shape(tied=True, interval=2, seed=3)
CASES = {
    "tiny": (Variant(TINY), "affine2-g64", "source"),
    "odd": (Variant(ODD), "affine4-g64", "affine8-g64"),
    "narrow": (Variant(NARROW, dtype="float16"), "affine2-g32", "source"),
    "tied": (Variant(TIED, dtype="float32"), "affine2-g32", "affine4-g64"),
}


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packs")
    for name, (variant, expert_format, trunk) in CASES.items():
        build_pack(make_checkpoint(variant), folder / name, expert_format=expert_format, trunk=trunk)
    return {name: folder / name for name in CASES}


def tokens_of(path: Path, count: int, seed: int = 0) -> list[int]:
    with Engine.open(path) as engine:
        return list(map(int, np.random.default_rng(seed).integers(0, engine.model.vocab_size, count)))


def logits(path: Path, tokens: list[int], **options: object) -> np.ndarray:
    with Engine.open(path, EngineOptions(**options)) as engine:  # type: ignore[arg-type]
        return engine.new_session().extend_all(tokens)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_mathematics(packs: dict[str, Path], case: str) -> None:
    tokens = tokens_of(packs[case], 40)
    reference = Reference(packs[case])
    wanted = np.stack([reference.step(token) for token in tokens])
    assert np.abs(logits(packs[case], tokens, exact=True) - wanted).max() < 1e-4
    assert np.abs(logits(packs[case], tokens) - wanted).max() < 2e-2  # activations rounded to fifteen bits


@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
@pytest.mark.parametrize("case", CASES)
def test_chunks_threads_and_slots_change_no_bit(packs: dict[str, Path], case: str, exact: bool) -> None:
    tokens = tokens_of(packs[case], 700)
    whole = logits(packs[case], tokens, chunk=700, threads=2, exact=exact)
    assert whole.shape[0] == 700
    choices = [
        {"chunk": 7, "threads": 2},
        {"chunk": 1, "threads": 2},
        {"chunk": 256, "threads": 1},
        {"chunk": 300, "threads": 4},
        {"chunk": 64, "threads": 2, "slots": 1},
        {"chunk": 1, "threads": 1, "slots": 1},
        {"chunk": 16, "threads": 2, "slots": 1},
        {"chunk": 16, "threads": 3, "slots": 3},
        {"chunk": 17, "threads": 2, "slots": 3},
        {"chunk": 64, "threads": 2, "slots": 3},
        {"chunk": 64, "threads": 2, "slots": 10**6},
        {"chunk": 33, "threads": 2, "check_digests": False},
    ]
    for choice in choices:
        assert np.array_equal(logits(packs[case], tokens, exact=exact, **choice), whole), choice


LOGITS = """
import sys
from pathlib import Path
import numpy as np
from moepack.manifests.errors import UsageError
from moepack.runtime import _native
from moepack.runtime.engine import Engine, EngineOptions
try:
    engine = Engine.open(Path(sys.argv[1]), EngineOptions(chunk=20, threads=2, exact="exact" in sys.argv[2]))
except UsageError as error:
    sys.exit(f"refused: {error}")
tokens = [int(text) for text in sys.argv[3:]]
np.save(sys.argv[2], engine.new_session().extend_all(tokens))
print(engine.backend.name)
"""


def logits_on(instruction_set: str, path: Path, tokens: list[int], file: Path) -> np.ndarray | None:
    """What a process forced to an instruction set computes; None if this machine lacks it."""
    done = run_on(instruction_set, "-c", LOGITS, str(path), str(file), *map(str, tokens))
    if done.returncode:
        names = f"refused: MOEPACK_ISA={instruction_set} names no instruction set that this machine runs; unset it"
        assert done.stderr.startswith(names), done.stderr
        return None
    assert done.stdout.strip() == f"cpu ({instruction_set})"
    return np.load(file)


@pytest.mark.parametrize("arithmetic", ["rounded", "exact"])
@pytest.mark.parametrize("case", ["odd", "tied"])
def test_every_instruction_set_runs_the_whole_model(
    packs: dict[str, Path], case: str, arithmetic: str, tmp_path: Path
) -> None:
    tokens = tokens_of(packs[case], 40)
    files = {name: tmp_path / f"{name}-{arithmetic}.npy" for name in KERNEL_SETS}
    found = {name: logits_on(name, packs[case], tokens, file) for name, file in files.items()}
    results = {name: got for name, got in found.items() if got is not None}
    assert _native.instruction_set() in results
    here = logits(packs[case], tokens, exact=arithmetic == "exact")
    near = 1e-4 if arithmetic == "exact" else 2e-2  # without fused multiply-add a few numbers round to the neighbour
    assert all(np.abs(got - here).max() < near for got in results.values())
    assert len({got.tobytes() for name, got in results.items() if name != "baseline"}) <= 1


def test_an_unknown_instruction_set_is_refused_in_a_sentence(packs: dict[str, Path], tmp_path: Path) -> None:
    assert logits_on("mmx", packs["tiny"], [1], tmp_path / "none.npy") is None


def test_extend_gives_the_last_row_and_continues(packs: dict[str, Path]) -> None:
    tokens = tokens_of(packs["tiny"], 30)
    with Engine.open(packs["tiny"], EngineOptions(chunk=18)) as engine:
        rows = engine.new_session().extend_all(tokens)
        session = engine.new_session()
        assert np.array_equal(session.extend(tokens[:11]), rows[10])
        assert session.position == 11
        assert np.array_equal(session.extend(tokens[11:12]), rows[11])
        assert np.array_equal(session.extend_all(tokens[12:]), rows[12:])


def test_sessions_know_nothing_of_each_other(packs: dict[str, Path]) -> None:
    first, second = tokens_of(packs["odd"], 20, 1), tokens_of(packs["odd"], 20, 2)
    with Engine.open(packs["odd"]) as engine:
        alone = engine.new_session().extend_all(first)
        one, other = engine.new_session(), engine.new_session()
        rows = []
        for a, b in zip(first, second, strict=True):
            rows.append(one.extend([a]))
            other.extend([b])
        assert np.array_equal(np.stack(rows), alone)


@pytest.mark.parametrize("k", [1, 2])
def test_fewer_experts_per_token(packs: dict[str, Path], k: int) -> None:
    tokens = tokens_of(packs["tiny"], 12)
    reference = Reference(packs["tiny"], k)
    wanted = np.stack([reference.step(token) for token in tokens])
    assert np.abs(logits(packs["tiny"], tokens, experts_per_token=k, exact=True) - wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"experts_per_token": 4}, "outside the model's 1 to 3"),
        ({"experts_per_token": 0}, "outside the model's 1 to 3"),
        ({"context": 4097}, "outside the model's 1 to 4096"),
        ({"slots": 0}, "at least 1"),
        ({"memory": 10_000_000}, "give --memory 0"),
        ({"threads": 0}, "outside 1 to 1024"),
        ({"threads": 1025}, "outside 1 to 1024"),
        ({"chunk": 0}, "of at least 1"),
    ],
)
def test_options_that_cannot_be_met(packs: dict[str, Path], options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Engine.open(packs["tiny"], EngineOptions(**options))


def test_what_a_session_refuses(packs: dict[str, Path]) -> None:
    with Engine.open(packs["tiny"], EngineOptions(context=10)) as engine:
        session = engine.new_session()
        with pytest.raises(UsageError, match="no tokens"):
            session.extend([])
        with pytest.raises(UsageError, match="do not fit the context of 10"):
            session.extend([1] * 11)
        with pytest.raises(UsageError, match="token 512 is outside"):
            session.extend([512])
        with pytest.raises(UsageError, match="token -1 is outside"):
            session.extend([-1])
        session.extend([1] * 10)
        with pytest.raises(UsageError, match="11 tokens do not fit"):
            session.extend([1])


def test_a_closed_engine_ends_its_sessions(packs: dict[str, Path]) -> None:
    with Engine.open(packs["tiny"]) as engine:
        session = engine.new_session()
        session.extend([1, 2])
    with pytest.raises(UsageError, match="closed"):
        session.extend([3])


def test_an_opened_pack_is_used_and_not_closed(packs: dict[str, Path]) -> None:
    with Pack.open(packs["tiny"]) as pack:
        with pytest.raises(UsageError, match="outside the model's 1 to 4096"):
            plan_run(pack, EngineOptions(context=4097))
        assert plan_run(pack, EngineOptions(context=99)).context == 99
        for _ in range(2):
            with Engine.of(pack, EngineOptions(context=99)) as engine:
                assert engine.context == 99
                engine.new_session().extend([1])


def test_a_large_context_costs_memory_only_when_it_is_used(packs: dict[str, Path]) -> None:
    with Engine.open(packs["tiny"], EngineOptions(context=4096)) as engine:
        model, backend = engine.model, engine.backend
        before = resident_bytes()
        states = [State(model, backend, 4096 * 1000) for _ in range(2)]
        assert resident_bytes() - before < 50e6 < position_bytes(model) * 4096 * 1000
        assert states[0].position == 0


def resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from Linux's /proc")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def test_a_damaged_trunk_is_never_used(make_checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    build_pack(make_checkpoint(), tmp_path / "pack")
    flip(tmp_path / "pack" / "trunk.safetensors", -1000)
    with pytest.raises(MismatchError, match=r"trunk\.safetensors is damaged"):
        Engine.open(tmp_path / "pack")


def test_a_trunk_of_another_shape_is_refused(packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from moepack.runtime import weights

    tensors = weights.read_trunk

    def without(name: str) -> None:
        def read(pack: object, **options: object) -> dict[str, np.ndarray]:
            found = tensors(pack, **options)  # type: ignore[arg-type]
            return {key: value[:-1] if key == name else value for key, value in found.items() if key != f"-{name}"}

        monkeypatch.setattr(weights, "read_trunk", read)

    for name in ("model.norm.weight", "lm_head.weight", "model.layers.0.linear_attn.conv1d.weight"):
        without(name)
        with pytest.raises(CorruptInputError, match=f"'{name}' is .*, but the model needs"):
            Engine.open(packs["tiny"])
    monkeypatch.setattr(weights, "read_trunk", lambda pack, **options: {})
    with pytest.raises(CorruptInputError, match=r"has no tensor 'model\.embed_tokens\.weight'"):
        Engine.open(packs["tiny"])

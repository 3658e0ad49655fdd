"""What sessions of one engine on the Metal backend leave to each other: buffers and rotations, and nothing else."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkpoints import CheckpointMaker
from metal.whole import TOLERANCE, Packs, on_cpu, on_metal

from moepack.runtime.engine import Turn
from moepack.runtime.sessions import statefile

TOKENS = [5, 99, 17, 250, 3, 41, 7, 12, 64, 8, 1]


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Packs(tmp_path_factory.mktemp("sessions"), make_checkpoint)


def random_tokens(vocabulary: int, count: int) -> list[int]:
    return list(map(int, np.random.default_rng(count).integers(0, vocabulary, count)))


@pytest.mark.parametrize("earlier", [5, 11])
def test_a_session_goes_further_than_an_earlier_one(fake: ModuleType, packs: dict[str, Path], earlier: int) -> None:
    pack = packs["odd"]
    with on_metal(pack) as engine:
        wanted = engine.new_session().extend(TOKENS)
    with on_metal(pack) as engine:
        engine.new_session().extend(TOKENS[:earlier])
        assert np.array_equal(engine.new_session().extend(TOKENS), wanted)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("case", ["odd", "wide-heads"])
def test_sequences_that_go_together_answer_as_alone(packs: dict[str, Path], case: str) -> None:
    """Prompts, and more tokens than go row by row; positions differ, so that attention splits differ."""
    with on_cpu(packs[case]) as engine:
        prompts = [random_tokens(engine.model.vocab_size, size) for size in (3, 300, 11, 40, 7, 1)]
        wanted = [engine.new_session().extend_all([*prompt, 5, 6]) for prompt in prompts]
    with on_metal(packs[case], sessions=6, chunk=512) as engine:
        sessions = [engine.new_session() for _ in prompts]
        turns = [Turn(session, prompt) for session, prompt in zip(sessions, prompts, strict=True)]
        found = [engine.extend(turns), *(engine.extend([Turn(each, [token]) for each in sessions]) for token in (5, 6))]
    for index, logits in enumerate(wanted):
        assert np.abs(np.stack([step[index][0] for step in found]) - logits[-3:]).max() < TOLERANCE


@pytest.mark.usefixtures("gpu")
def test_a_sequence_goes_on_from_snapshots(packs: dict[str, Path]) -> None:
    with on_metal(packs["odd"], chunk=8) as engine:
        tokens = random_tokens(engine.model.vocab_size, 40)
        session = engine.new_session()
        session.extend(tokens[:16])
        first = session.snapshot(0)
        session.extend(tokens[16:24])
        kept = [first, session.snapshot(16)]
        wanted = session.extend(tokens[24:])
        session.restore(kept)
        assert np.array_equal(session.extend(tokens[24:]), wanted)
        session.restore([])
        session.extend(tokens[:24])
        assert np.array_equal(session.extend(tokens[24:]), wanted)


@pytest.mark.usefixtures("gpu")
def test_a_sequence_goes_back_and_is_kept_in_a_file(packs: dict[str, Path], tmp_path: Path) -> None:
    with on_metal(packs["odd"], chunk=8) as engine:
        tokens = random_tokens(engine.model.vocab_size, 40)
        session = engine.new_session()
        session.extend(tokens[:16])
        place = session.snapshot(16)
        wanted = session.extend(tokens[16:])
        session.rewind(place)
        assert np.array_equal(session.extend(tokens[16:]), wanted)
        session.rewind(place)
        file = tmp_path / "state"
        digest = statefile.save(file, tokens[:16], session.state, [place], engine.backend)
        other, room = engine.new_session(), statefile.Room(engine.context, engine.model.vocab_size)
        found, places = statefile.load(file, digest, other.state, engine.backend, room)
        assert (found, [each.last for each in places]) == (tokens[:16], [16])
        assert np.array_equal(other.extend(tokens[16:]), wanted)

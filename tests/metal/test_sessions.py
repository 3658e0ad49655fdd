"""What sessions of one engine on the Metal backend leave to each other: buffers and rotations, and nothing else."""

from types import ModuleType

import numpy as np
import pytest
from checkpoints import CheckpointMaker
from metal.whole import Packs, on_metal

TOKENS = [5, 99, 17, 250, 3, 41, 7, 12, 64, 8, 1]


@pytest.mark.parametrize("earlier", [5, 11])
def test_a_session_goes_further_than_an_earlier_one(
    fake: ModuleType, make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory, earlier: int
) -> None:
    pack = Packs(tmp_path_factory.mktemp("sessions"), make_checkpoint)["odd"]
    with on_metal(pack) as engine:
        wanted = engine.new_session().extend(TOKENS)
    with on_metal(pack) as engine:
        engine.new_session().extend(TOKENS[:earlier])
        assert np.array_equal(engine.new_session().extend(TOKENS), wanted)

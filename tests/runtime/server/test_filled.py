"""A server reads experts before anybody asks: it answers the same, and damage is an error of who needs it only."""

import logging
import shutil
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from server.hosting import QUESTION, hosted
from server.test_streams import streamed
from slow_reader import flip_bit

from moepack.layout.reader import Pack
from moepack.runtime.engine import Engine


@pytest.mark.parametrize("slots", [None, 40])
def test_what_was_read_before_anybody_asked_changes_no_answer(
    demo: Path, monkeypatch: pytest.MonkeyPatch, slots: int | None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "fill", lambda engine: False)
        with hosted(demo, slots=slots, prefix_bytes=0) as server:
            server.filled()
            assert server.service.engine.stats.records_read == 0
            wanted = [streamed(server, index) for index in range(2)]
    with hosted(demo, slots=slots, prefix_bytes=0) as server:
        server.filled()
        stats, memory = server.service.engine.stats, server.service.engine.memory
        assert (stats.records_read, stats.slot_hits) == (memory.slots, 0)
        assert [streamed(server, index) for index in range(2)] == wanted
        after = server.service.engine.stats
    assert after.slot_hits > 0
    assert (after.records_read == memory.slots) == (slots is None)


def test_a_damaged_expert_is_logged_at_the_start_and_ends_only_who_needs_it(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    with Pack.open(tmp_path / "demo") as pack:
        flip_bit(pack, 0, 0)
    with caplog.at_level(logging.ERROR, "moepack.server"), hosted(tmp_path / "demo") as server:
        server.filled()
        [said] = [record.getMessage() for record in caplog.records]
        assert said.startswith("experts are read when they are needed only: ")
        assert "layer 0, expert 0 " in said
        assert "`moe-pack verify" in said
        assert httpx.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.InternalServerError, match=r"layer 0, expert 0 .* is damaged"):
            server.openai().completions.create(model="demo", prompt=f"{QUESTION} " * 40, max_tokens=1)

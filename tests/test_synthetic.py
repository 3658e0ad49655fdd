"""Synthetic checkpoints: packed like any other, the same weights as their bfloat16 twins, one token a word."""

from pathlib import Path

import numpy as np
import pytest
import torch
from extended.performance.locality import hit_rate, overlap, trace
from extended.synthetic import LOCAL, UNIFORM, Routing, Width, write_checkpoint
from extended.twin import write_twin
from extended.words import END, text, tokenizer, write_tokenizer
from oracle import reference_model
from packs import build_pack

from moepack.runtime.engine import Engine, EngineOptions

BF16_STEP = 2.0**-8  # the largest relative error of rounding to bfloat16
VOCAB = 1024


def small(*, experts: int = 8, routing: Routing = UNIFORM) -> Width:
    """A model of both kinds of layers, whose files are a few megabytes."""
    sizes = {"hidden": 128, "intermediate": 64, "heads": 4, "head_dim": 32, "value_heads": 4, "linear_head_dim": 32}
    return Width(4, experts, experts_per_token=3, vocab=VOCAB, key_heads=2, routing=routing, **sizes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "checkpoint"
    write_checkpoint(small(), folder)
    write_tokenizer(VOCAB, folder)
    return folder


def test_the_twin_has_the_checkpoint_s_weights(checkpoint: Path, tmp_path: Path) -> None:
    """transformers reads the twin, and a pack through which every weight passes unchanged, as the same tensors."""
    from transformers import AutoModelForCausalLM

    build_pack(checkpoint, tmp_path / "pack", expert_format="affine4-g64")
    write_twin(checkpoint, tmp_path / "twin")
    wanted = reference_model(tmp_path / "pack").state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "twin", dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=BF16_STEP, atol=0, msg=name)


def test_activations_stay_sane_and_experts_differ(checkpoint: Path, tmp_path: Path) -> None:
    build_pack(checkpoint, tmp_path / "pack")
    with Engine.open(tmp_path / "pack", EngineOptions(threads=2)) as engine:
        logits = engine.new_session().extend_all(list(range(200)))
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 5
    digests = (tmp_path / "pack" / "digests.bin").read_bytes()
    assert len({digests[i : i + 32] for i in range(0, len(digests), 32)}) == 4 * 8


def traced(routing: Routing, folder: Path, tokens: list[int]) -> list[list[frozenset[int]]]:
    write_checkpoint(small(experts=64, routing=routing), folder / "checkpoint")
    build_pack(folder / "checkpoint", folder / "pack", method="minmax")
    with Engine.open(folder / "pack", EngineOptions(threads=2)) as engine:
        return trace(engine, tokens)


def test_a_text_s_experts_are_used_again_where_tokens_share_directions(tmp_path: Path) -> None:
    tokens = tokenizer(VOCAB).encode(text(VOCAB, UNIFORM.topics, 400)).ids
    uniform, local = traced(UNIFORM, tmp_path / "u", tokens), traced(LOCAL, tmp_path / "l", tokens)
    assert np.mean([overlap(layer) for layer in local]) > 2 * np.mean([overlap(layer) for layer in uniform])
    for few, many in zip(uniform, local, strict=True):
        assert hit_rate(many, 8) > hit_rate(few, 8) + 0.1


def test_each_word_of_a_text_is_one_token_of_its_topic() -> None:
    made = tokenizer(VOCAB)
    tokens = made.encode(text(VOCAB, 7, 300, stay=0.9)).ids
    assert len(tokens) == 300
    stays = np.mean([a % 7 == b % 7 for a, b in zip(tokens[1:], tokens, strict=False)])
    assert 0.8 < stays < 0.97
    assert made.encode(END).ids == [VOCAB - 1]
    assert made.decode(made.encode("babe bice, hello 12\n").ids) == "babe bice, hello 12\n"


def test_a_vocabulary_without_room_for_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no room for words"):
        tokenizer(300)


def test_hit_rates_and_overlap_of_a_known_trace() -> None:
    tokens = [frozenset({i % 4}) for i in range(40)]  # a cycle of four: the worst for a cache of three
    assert (hit_rate(tokens, 3), hit_rate(tokens, 4)) == (0, 1)
    assert overlap([frozenset({1, 2}), frozenset({2, 3}), frozenset({2, 3})]) == 0.75

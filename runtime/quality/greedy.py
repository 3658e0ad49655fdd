"""Greedy answers to many prompts at once, each token of all of them in one pass through the model's layers.

A model that does not fit in memory is read once per position, not once per prompt and position. Answers are those an
engine gives one by one, token for token.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ...manifests.progress import Task
from ..corpus import Corpus, Room
from ..state import State, position_bytes, recurrent_bytes
from ..sweep import Sweep
from .divergence import blocks

STATE_MEMORY = 4 * 1024**3  # bytes of the states of the sequences that advance together

Answer = list[int]


def answers(
    sweep: Sweep,
    prompts: Sequence[Sequence[int]],
    *,
    end_tokens: frozenset[int],
    longest: int,
    task: Task,
    room: Room,
    memory: int = STATE_MEMORY,
) -> list[Answer]:
    """The greedy continuation of each prompt: up to an end token, which is left out, or `longest` tokens.

    `task` advances by one for each finished answer. Prompts are taken in batches whose states fit `memory`.
    """
    done: list[Answer] = []
    for batch in _batches(sweep, prompts, longest, memory):
        done += _Batch(sweep, batch, end_tokens, longest, room).answers(task)
    return done


def _batches(
    sweep: Sweep, prompts: Sequence[Sequence[int]], longest: int, memory: int
) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    used = 0
    for prompt in prompts:
        size = recurrent_bytes(sweep.model) + (len(prompt) + longest) * position_bytes(sweep.model)
        if batch and used + size > memory:
            yield batch
            batch, used = [], 0
        batch.append(prompt)
        used += size
    if batch:
        yield batch


class _Batch:
    """Sequences that advance together; those that have ended drop out."""

    def __init__(
        self, sweep: Sweep, prompts: Sequence[Sequence[int]], end_tokens: frozenset[int], longest: int, room: Room
    ) -> None:
        self._sweep, self._ends, self._longest, self._room = sweep, end_tokens, longest, room
        self._answers: list[Answer] = [[] for _ in prompts]
        self._states = [State(sweep.model, sweep.backend, len(prompt) + longest) for prompt in prompts]
        self._pending: dict[int, Sequence[int]] = dict(enumerate(prompts))

    def answers(self, task: Task) -> list[Answer]:
        while self._pending:
            task.note(f"token {max(map(len, self._answers)) + 1}")
            chosen = self._step(task)
            self._pending = {}
            for index, token in chosen.items():
                if token not in self._ends:
                    self._answers[index].append(token)
                if token in self._ends or len(self._answers[index]) == self._longest:
                    task.advance(1)
                else:
                    self._pending[index] = [token]
        return self._answers

    def _step(self, task: Task) -> dict[int, int]:
        """Give every pending sequence its tokens; the likeliest next token of each."""
        corpus = Corpus.of(list(self._pending.values()))
        states = [self._states[index] for index in self._pending]
        stream = self._sweep.embed(corpus, self._room)
        for layer in range(self._sweep.model.num_layers):
            self._sweep.advance(layer, stream, states=states)
            task.advance(0)  # the first token takes a pass over all prompts: show that there is life
        for state, tokens in zip(states, self._pending.values(), strict=True):
            state.position += len(tokens)
        last = stream.rows[np.asarray(corpus.starts[1:]) - 1]
        parts = blocks(len(last), self._sweep.model.vocab_size)
        chosen = np.concatenate([self._sweep.logits_of(last[part]).argmax(axis=1) for part in parts])
        return dict(zip(self._pending, chosen.tolist(), strict=True))

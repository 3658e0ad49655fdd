"""Mutants of what drives whole models: the answering thread, command buffers, lent memory, and the backend."""

from extended.mutants.mutant import Kind, of


def _whole(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/metal/test_whole_models.py::test_{name}" for name in names)


ODD = _whole("odd_models_answer_as_on_the_cpu[asynchronous-odd]", "odd_models_answer_as_on_the_cpu[random-odd]")
WIDE = _whole("odd_models_answer_as_on_the_cpu[asynchronous-wide-heads]")
PACED = ODD + _whole(
    "fewer_experts_and_few_slots_change_nothing_but_speed", "a_token_costs_one_command_buffer_and_one_answer_per_layer"
)
PIECES = _whole(
    "fewer_experts_and_few_slots_change_nothing_but_speed", "a_trunk_and_slots_larger_than_a_buffer_lie_in_several"
)
SESSIONS = ODD + _whole(
    "all_logits_of_a_prompt_are_those_of_its_tokens", "a_second_session_takes_over_the_first_ones_buffers"
)
ANY_ORDER = _whole("records_that_come_in_another_order_change_nothing")
SLOTS = _whole("fewer_experts_and_few_slots_change_nothing_but_speed")
TOGETHER = ("tests/metal/test_products_together.py",)
WORK = ("tests/metal/test_work.py",)
CHECKED = _whole("the_checker_finds_nothing_in_a_whole_pass[odd]")


def _failing(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/metal/test_whole_failures.py::test_{name}" for name in names)


RECORDS = _failing("a_damaged_record_gives_no_token", "a_file_that_ends_early_gives_no_token")
CONFIRMED = _failing("nothing_leaves_before_records_are_found_good")
INTERRUPTS = _failing("an_interrupt_leaves_nothing_under_way")
CLOSED = _failing("an_engine_is_closed_only_once_the_gpu_is_done_whatever_was_interrupted")
KEPT = _failing("a_failed_token_keeps_nothing_that_was_lent_to_it")
AGAIN = ("tests/metal/test_work.py::test_what_an_interrupted_drop_left_is_not_done_by_the_next_pass",)
ENDED = _failing("whatever_ends_a_pass_encoding_has_ended")
AT_THE_END = _failing("a_gpu_that_fails_at_a_tokens_end_is_told_so")
FAILURES = _failing("a_gpu_that_fails_in_a_token_is_told_by_section_and_the_engine_goes_on")

_decoding = of("runtime/backends/metal/decoding.py", PACED)
_work = of("runtime/backends/metal/work.py", PACED)
_memory = of("runtime/backends/metal/memory.py", SESSIONS)
_backend = of("runtime/backends/metal/backend.py", SESSIONS)
_model = of("runtime/model.py", PACED)
_swept = of("runtime/decoding.py", PACED)

MUTANTS = [
    _decoding(
        "the GPU tells of a choice before it is made",
        Kind.ORDER,
        """        choice = backend.choose(backend.linear(normed, weights.router), k)
        work.signal(self._chosen, turn)
""",
        """        work.signal(self._chosen, turn)
        choice = backend.choose(backend.linear(normed, weights.router), k)
""",
    ),
    _decoding("the GPU does not wait for records", Kind.WAIT, "        work.wait(self._ready, turn)\n", ""),
    _decoding(
        "the GPU waits for the records of the layer before",
        Kind.WAIT,
        "work.wait(self._ready, turn)",
        "work.wait(self._ready, turn - 1)",
    ),
    _decoding(
        "the GPU waits for its own event",
        Kind.WAIT,
        "work.wait(self._ready, turn)",
        "work.wait(self._chosen, turn)",
    ),
    _decoding(
        "experts are enqueued before the wait",
        Kind.ORDER,
        """        work.wait(self._ready, turn)
        work.section(EXPERTS)
        given = backend.one_tokens_experts(parts.layouts[index], self._slots, normed, k)
""",
        """        work.section(EXPERTS)
        given = backend.one_tokens_experts(parts.layouts[index], self._slots, normed, k)
        work.wait(self._ready, turn)
""",
    ),
    _decoding(
        "the table is written after the signal",
        Kind.ORDER,
        "        self._answer(layer)\n        self._ready.signal(turn)\n",
        "        self._ready.signal(turn)\n        self._answer(layer)\n",
    ),
    _decoding(
        "layers are not answered one by one",
        Kind.MISSING,
        "        self._answer(layer)\n        self._ready.signal(turn)\n",
        "        self._answer(layer)\n",
    ),
    _decoding(
        "the host reads what was chosen a layer early",
        Kind.WAIT,
        "while not self._chosen.wait(turn, PATIENCE)",
        "while not self._chosen.wait(turn - 1, PATIENCE)",
    ),
    _decoding(
        "each token's turns begin anew",
        Kind.PLACE,
        "range(self._turns.stop, self._turns.stop + len(self._parts.layers))",
        "range(1, 1 + len(self._parts.layers))",
    ),
    _decoding(
        "a token's turns begin with the last of the one before",
        Kind.BY_ONE,
        "range(self._turns.stop, self._turns.stop + len(self._parts.layers))",
        "range(self._turns.stop - 1, self._turns.stop - 1 + len(self._parts.layers))",
    ),
    _decoding(
        "slots in the order in which records came",
        Kind.ORDER,
        'b"".join(places[expert] for expert in ids)',
        'b"".join(places.values())',
        ANY_ORDER,
    ),
    _decoding(
        "slots in the order of ids",
        Kind.ORDER,
        'b"".join(places[expert] for expert in ids)',
        'b"".join(places[expert] for expert in sorted(ids))',
    ),
    _decoding(
        "the layer after the one that chose",
        Kind.BY_ONE,
        "enumerate(self._turns)):",
        "enumerate(self._turns, -len(self._turns) + 1)):",
    ),
    _work(
        "a pass's end does not commit",
        Kind.MISSING,
        "        self.commit()\n        while len",
        "        while len",
    ),
    _work(
        "a pass's end does not wait",
        Kind.WAIT,
        "        commands.finish()\n",
        "        commands.check()\n",
    ),
    _work(
        "one command buffer too many is left",
        Kind.BY_ONE,
        "len(self._running) > left:",
        "len(self._running) > left + 1:",
    ),
    _work("command buffers are not remembered", Kind.MISSING, "            self._running.append(commands)\n", ""),
    _work(
        "a section is believed to go on after a signal",
        Kind.MISSING,
        "self._begun().signal(event, value)\n        self._section = None",
        "self._begun().signal(event, value)",
        WORK,
    ),
    _work(
        "a section is believed to go on after a wait",
        Kind.MISSING,
        "self._begun().wait(event, value)\n        self._section = None",
        "self._begun().wait(event, value)",
        WORK,
    ),
    _work(
        "a wait is a signal", Kind.OPERATION, "self._begun().wait(event, value)", "self._begun().signal(event, value)"
    ),
    _work(
        "a pass without a pool",
        Kind.MISSING,
        "        with self._device.pool():\n            try:\n                yield",
        "        if True:\n            try:\n                yield",
    ),
    _memory(
        "an array's offset counts from the buffer before",
        Kind.BY_ONE,
        "index = bisect_right(self._pieces, address, key=itemgetter(0)) - 1",
        "index = max(0, bisect_right(self._pieces, address, key=itemgetter(0)) - 2)",
        PIECES,
    ),
    _memory(
        "a tensor's start in floats",
        Kind.PLACE,
        "self.region.offset + 4 * self._first\n\n",
        "self.region.offset + self._first\n\n",
    ),
    _memory(
        "a slice of a slice from the first row", Kind.PLACE, "self._first + first * self.width)", "first * self.width)"
    ),
    _memory(
        "a slice one row late",
        Kind.BY_ONE,
        "self._first + first * self.width)",
        "self._first + (first + 1) * self.width)",
    ),
    _memory(
        "a region is lent twice",
        Kind.PLACE,
        "[(offset + wanted, free - wanted)] if free > wanted",
        "[(offset, free)] if free > wanted",
    ),
    _memory(
        "regions overlap by a line",
        Kind.BY_ONE,
        "[(offset + wanted, free - wanted)] if free > wanted",
        "[(offset + wanted - LINE, free - wanted + LINE)] if free > wanted",
    ),
    _memory(
        "regions are never taken back",
        Kind.MISSING,
        "Region(self._buffer, offset, wanted, self._take_back)",
        "Region(self._buffer, offset, wanted, None)",
    ),
    _memory(
        "what is given back is larger than it was",
        Kind.BY_ONE,
        "region.offset, region.offset + region.size",
        "region.offset, region.offset + region.size + LINE",
    ),
    _memory("small weights lie on each other", Kind.MISSING, "        self._end += size\n", ""),
    _memory(
        "spare buffers are made anew", Kind.MISSING, "idle.pop().buffer if idle else", "idle.pop().buffer if False else"
    ),
    _memory(
        "spare buffers of any size",
        Kind.CHECK,
        "self._idle.setdefault(region.size, [])",
        "self._idle.setdefault(LINE, [])",
    ),
    _backend(
        "products are given back while they are used",
        Kind.ORDER,
        "outs = [Tensor(all_.region, len(x)",
        "outs = [Tensor(type(all_.region)(all_.region.buffer, all_.region.offset, 0, None), len(x)",
    ),
    _backend(
        "all slots are looked for in the first arena",
        Kind.PLACE,
        "launches.slot(*self.slots.locate(record))",
        "launches.slot(0, self.slots.locate(record)[1])",
        PIECES,
    ),
    _backend("all arenas are the first", Kind.PLACE, "pieces[min(index, len(pieces) - 1)]", "pieces[0]", PIECES),
    _backend(
        "the arena after a record's",
        Kind.BY_ONE,
        "pieces[min(index, len(pieces) - 1)]",
        "pieces[min(index + 1, len(pieces) - 1)]",
        PIECES,
    ),
    _backend(
        "products of several buffers in one launch",
        Kind.PLACE,
        "(matrix.type, id(matrix.buffer)), []",
        "(matrix.type, 0), []",
        TOGETHER,
    ),
    _backend(
        "products of several types in one launch",
        Kind.PLACE,
        "(matrix.type, id(matrix.buffer)), []",
        '("", id(matrix.buffer)), []',
        TOGETHER,
    ),
    _backend(
        "keys and values change places",
        Kind.ORDER,
        "tensors = (queries, state.keys, state.values, partials)",
        "tensors = (queries, state.values, state.keys, partials)",
    ),
    _backend(
        "decay and beta change places",
        Kind.ORDER,
        "tensors = (convolved, decay, beta,",
        "tensors = (convolved, beta, decay,",
    ),
    _backend(
        "a new session's state is what an earlier one left", Kind.MISSING, "        region.buffer.bytes[:] = 0\n", ""
    ),
    _backend(
        "the host reads logits before they are there",
        Kind.WAIT,
        "        self.work.finish()\n        return x.values.copy()",
        "        self.work.commit()\n        return x.values.copy()",
    ),
    _backend(
        "the host reads routes before they are there",
        Kind.WAIT,
        "        self.work.finish()\n        starts, size",
        "        self.work.commit()\n        starts, size",
    ),
    _backend(
        "weights where ids are",
        Kind.PLACE,
        "tokens * k * part for part in range(",
        "tokens * k * (part // 2) for part in range(",
    ),
    _backend(
        "angles of the chunk's first tokens", Kind.PLACE, "self._cos[position:last]", "self._cos[: last - position]"
    ),
    _backend(
        "a record is overwritten while the GPU reads it",
        Kind.WAIT,
        "self.work.finish(LAG)",
        "self.work.finish(LAG + 1)",
        SLOTS,
    ),
    _backend(
        "sines for cosines",
        Kind.PLACE,
        "return self._cos[position:last], self._sin[position:last]",
        "return self._sin[position:last], self._cos[position:last]",
    ),
    _backend(
        "angles are computed from the chunk's start",
        Kind.PLACE,
        "_native.rotation(self._known,",
        "_native.rotation(position,",
        ("tests/metal/test_sessions.py",),
    ),
    _backend(
        "attention knows no position",
        Kind.PLACE,
        "launches.AttentionChunk(stretch.position, tokens,",
        "launches.AttentionChunk(0, tokens,",
    ),
    _backend(
        "down's input is not gated",
        Kind.MISSING,
        '        self.work.run(self._plain("swiglu"), launches.threads_grid(count), *arguments)\n',
        "",
    ),
    _backend(
        "up with gate's matrix",
        Kind.PLACE,
        "for matrix, out in ((gate, gated), (up, upped)):",
        "for matrix, out in ((gate, gated), (gate, upped)):",
    ),
    _backend("a gated product as two", Kind.GRID, "x, out, products=1)", "x, out)", CHECKED),
    _backend(
        "tiles of fewer tokens than there are",
        Kind.GRID,
        "many_products_grid(matrix.rows, count, blocks)",
        "many_products_grid(matrix.rows, count, blocks + 1)",
    ),
    _backend(
        "sums are added from a workspace that was not cleared",
        Kind.MISSING,
        'self.work.run(self._plain("clear"), launches.threads_grid(count),',
        'self.work.run(self._plain("clear"), (0, 1, 1),',
    ),
    _decoding("what keeps a layer from its records is not told", Kind.MISSING, "self._error = error", "pass", RECORDS),
    _decoding(
        "the GPU is not let go on",
        Kind.WAIT,
        "            self._ready.signal(self._turns[-1])",
        "            pass",
        RECORDS,
    ),
    _decoding("one who gives up is not heard", Kind.MISSING, "        self._given_up = True\n", "", INTERRUPTS),
    _decoding(
        "a token is given up, its thread is not", Kind.MISSING, "            self._answers.give_up()\n", "", INTERRUPTS
    ),
    _work("a pass that ended by an error is not dropped", Kind.MISSING, "                self.drop()\n", "", WORK),
    _work(
        "what was not committed is kept for the next pass",
        Kind.MISSING,
        "        self._commands, self._section = None, None\n        while",
        "        while",
        WORK,
    ),
    _work("dropped work is not waited for", Kind.WAIT, "            self._running[0].end()\n", "", WORK),
    _work(
        "dropped work is looked at for failures",
        Kind.CHECK,
        "            self._running[0].end()\n",
        "            self._running[0].finish()\n",
        WORK,
    ),
    _model(
        "the answers of a token are not asked for errors",
        Kind.CHECK,
        "            self._decoding.finish()\n",
        "            pass\n",
        RECORDS,
    ),
    _swept(
        "a record is given back while the GPU reads it",
        Kind.ORDER,
        "list(visits), backend.lag)",
        "list(visits), 0)",
        SLOTS,
    ),
    _model(
        "nobody waits until records are checked", Kind.CHECK, "            self._experts.confirm()\n", "", CONFIRMED
    ),
    _model(
        "a token that failed is not abandoned",
        Kind.MISSING,
        "                self._decoding.abandon()\n            finally",
        "                pass\n            finally",
        INTERRUPTS,
    ),
    _work("what was left is not dropped", Kind.MISSING, "        self.drop()  # what", "        # what", AGAIN),
    _work("encoding is not ended", Kind.MISSING, "            self._commands.discard()", "            pass", ENDED),
    _backend(
        "closing does not wait",
        Kind.WAIT,
        '        """See Backend.close."""\n        self.work.drop()',
        '        """See Backend.close."""',
        CLOSED,
    ),
    _model("closing does not reach the backend", Kind.MISSING, "        self._backend.close()", "        pass", CLOSED),
    _decoding(
        "an error is kept with its token",
        Kind.MISSING,
        "                del error  # it",
        "                pass  # it",
        KEPT,
    ),
    _backend("a part has no name", Kind.MISSING, "        self.work.section(label)", "        pass", AT_THE_END),
]

"""Mutants of the host's modules that drive no model: the device, launches, builds and sources."""

from extended.mutants.mutant import Kind, of

DEVICE = ("tests/metal/test_device.py",)
LAUNCHES = ("tests/metal/test_launches.py",)
LIBRARY = ("tests/metal/test_library.py",)
PREFILL = ("tests/metal/test_prefill.py::test_products_of_many_tokens",)
PRODUCTS = ("tests/metal/test_matvec.py::test_products_of_one_input_with_several_matrices",)
EXPERTS = ("tests/metal/test_expert_slots.py::test_experts_read_their_records_where_the_table_says",)
SUMS = ("tests/metal/test_expert_slots.py", "-k", "sum")
NORMS = ("tests/metal/test_router.py::test_norms",)
ATTENTION = ("tests/metal/test_mixing.py", "-k", "not delta")
RULE = ("tests/metal/test_mixing.py::test_delta_rule",)
EMBEDDINGS = ("tests/metal/test_router.py::test_embeddings_are_rows_of_the_table",)
TOP_K = ("tests/metal/test_choosing.py",)
CODES = ("tests/metal/test_codes.py",)
ODD = ("tests/metal/test_whole_models.py::test_odd_models_answer_as_on_the_cpu[asynchronous-odd]",)

_device = of("runtime/backends/metal/device.py", DEVICE)
_launches = of("runtime/backends/metal/launches.py", LAUNCHES)
_library = of("runtime/backends/metal/library.py", LIBRARY)
_sources = of("runtime/backends/metal/sources.py", LAUNCHES)

MUTANTS = [
    _device("an encoder is not ended", Kind.MISSING, "self._encoder.endEncoding()", "pass"),
    _device(
        "a section begins within another",
        Kind.MISSING,
        "        self._end()\n        self._encoder = self",
        "        self._encoder = self",
    ),
    _device(
        "a signal within a section",
        Kind.MISSING,
        "        self._end()\n        self._buffer.encodeSignal",
        "        self._buffer.encodeSignal",
    ),
    _device(
        "a wait within a section",
        Kind.MISSING,
        "        self._end()\n        self._buffer.encodeWait",
        "        self._buffer.encodeWait",
    ),
    _device(
        "a commit within a section",
        Kind.MISSING,
        "        self._end()\n        self._buffer.commit",
        "        self._buffer.commit",
    ),
    _device(
        "the pipeline of the section before is believed to be set",
        Kind.MISSING,
        "self._encoder = self._pipeline = None",
        "self._encoder = None",
    ),
    _device(
        "the first pipeline of a section for all",
        Kind.OPERATION,
        "if self._pipeline is not pipeline:",
        "if self._pipeline is None:",
    ),
    _device("serial is concurrent", Kind.OPERATION, "MTLDispatchTypeSerial", "MTLDispatchTypeConcurrent"),
    _device(
        "a signal one too low",
        Kind.WAIT,
        "encodeSignalEvent_value_(event.event, value)",
        "encodeSignalEvent_value_(event.event, value - 1)",
    ),
    _device(
        "the GPU waits for one less",
        Kind.WAIT,
        "encodeWaitForEvent_value_(event.event, value)",
        "encodeWaitForEvent_value_(event.event, value - 1)",
    ),
    _device(
        "the GPU waits for one more",
        Kind.WAIT,
        "encodeWaitForEvent_value_(event.event, value)",
        "encodeWaitForEvent_value_(event.event, value + 1)",
    ),
    _device(
        "the GPU does not wait", Kind.WAIT, "        self._buffer.encodeWaitForEvent_value_(event.event, value)\n", ""
    ),
    _device(
        "the host does not wait until the end",
        Kind.WAIT,
        "        self.end()\n        self.check()",
        "        self.check()",
    ),
    _device(
        "time and value of a wait change places",
        Kind.WAIT,
        "timeoutMS_(value, milliseconds)",
        "timeoutMS_(milliseconds, value)",
    ),
    _device(
        "the host raises an event by one too little",
        Kind.WAIT,
        "setSignaledValue_(value)",
        "setSignaledValue_(value - 1)",
    ),
    _device(
        "a wait that took too long counts",
        Kind.CHECK,
        "return bool(self.event.waitUntil",
        "return True or bool(self.event.waitUntil",
    ),
    _device(
        "failures are not looked for", Kind.CHECK, "        self.end()\n        self.check()", "        self.end()"
    ),
    _device(
        "commands that completed count as failed",
        Kind.CHECK,
        "MTLCommandBufferStatusError:",
        "MTLCommandBufferStatusCompleted:",
    ),
    _device(
        "sections that completed count as failed",
        Kind.CHECK,
        "MTLCommandEncoderErrorStateFaulted",
        "MTLCommandEncoderErrorStateCompleted",
    ),
    _device(
        "command buffers that do not tell where they failed",
        Kind.MISSING,
        "        descriptor.setErrorOptions_(self._bindings.MTLCommandBufferErrorOptionEncoderExecutionStatus)\n",
        "",
    ),
    _device(
        "offsets are left out", Kind.PLACE, "argument[0].buffer, argument[1], index", "argument[0].buffer, 0, index"
    ),
    _device("all arguments at the first index", Kind.PLACE, "self._set(index, argument)", "self._set(0, argument)"),
    _device(
        "bytes that end one early", Kind.BY_ONE, "argument, len(argument), index", "argument, len(argument) - 1, index"
    ),
    _device("threadgroups for threads and threads for threadgroups", Kind.GRID, "*sizes)", "*sizes[::-1])", ODD),
    _device("the largest buffer is refused", Kind.BY_ONE, "size > self.most_in_buffer", "size >= self.most_in_buffer"),
    _device(
        "buffers of any size", Kind.CHECK, "        self._admit(size, label)\n        buffer =", "        buffer ="
    ),
    _device("wrapped memory of any size", Kind.CHECK, "        self._admit(len(memory), label)\n", ""),
    _device("wrapped memory that ends within a page", Kind.CHECK, " or len(memory) % mmap.PAGESIZE:", ":"),
    _device("wrapped memory that begins within a page", Kind.CHECK, "memory.ctypes.data % mmap.PAGESIZE or ", ""),
    _device(
        "a refused buffer is used",
        Kind.CHECK,
        'if buffer is None:\n            raise DeviceError(f"{self.name} gave',
        'if False:\n            raise DeviceError(f"{self.name} gave',
    ),
    _device(
        "a threadgroup of the most threads is refused", Kind.BY_ONE, "if most < threads or", "if most <= threads or"
    ),
    _device("threadgroups of any size", Kind.CHECK, "if most < threads or", "if"),
    _device("SIMD groups of any width", Kind.CHECK, "if most < threads or lanes != LANES:", "if most < threads:"),
    _device(
        "any device with unified memory", Kind.CHECK, "MTLGPUFamilyApple7) and self", "MTLGPUFamilyApple7) or self"
    ),
    _device("fast-math", Kind.OPERATION, "setFastMathEnabled_(False)", "setFastMathEnabled_(True)"),
    _device(
        "private memory",
        Kind.OPERATION,
        "self._bindings.MTLResourceStorageModeShared",
        "self._bindings.MTLResourceStorageModePrivate",
    ),
    _launches(
        "rows and columns change places",
        Kind.PACKING,
        "self.grids, self.rows, self.cols)",
        "self.grids, self.cols, self.rows)",
        PRODUCTS,
    ),
    _launches(
        "scales and biases change places",
        Kind.PACKING,
        "self.weight, self.scales, self.biases,",
        "self.weight, self.biases, self.scales,",
        PRODUCTS,
    ),
    _launches("a batch without padding", Kind.PACKING, '"<I4x", count', '"<I", count'),
    _launches(
        "results begin at bytes, not floats",
        Kind.PACKING,
        'struct.pack("<Q", out)',
        'struct.pack("<Q", 4 * out)',
        PRODUCTS,
    ),
    _launches(
        "span and splits change places",
        Kind.PACKING,
        "self.tokens, span, self.splits,",
        "self.tokens, self.splits, span,",
        ATTENTION,
    ),
    _launches(
        "a span that leaves out the chunk",
        Kind.OPERATION,
        "_ceil_div(self.position + self.tokens, self.splits)",
        "_ceil_div(self.position + 1, self.splits)",
        ATTENTION,
    ),
    _launches("a slot's arena and padding change places", Kind.PACKING, "offset, arena, 0)", "offset, 0, arena)"),
    _launches("offsets of slots are cut off", Kind.PACKING, "offset, arena, 0)", "offset & 0xFFFFFFFF, arena, 0)"),
    _launches(
        "eps where rows belong", Kind.PACKING, '"<IfI", width, eps, rows', '"<IfI", width, rows, int(eps)', NORMS
    ),
    _launches(
        "numbers are never called by their places", Kind.PACKING, '"<3I", count, k, first', '"<3I", count, k, 0', TOP_K
    ),
    _launches("hidden and k change places", Kind.PACKING, '"<2I", k, hidden', '"<2I", hidden, k', SUMS),
    _launches(
        "products for tokens", Kind.GRID, "ROWS_AT_ONCE), tokens, products", "ROWS_AT_ONCE), products, tokens", PRODUCTS
    ),
    _launches(
        "the last threadgroup of a row of experts is left out",
        Kind.GRID,
        "_ceil_div(rows, ROWS_AT_ONCE), k, 1",
        "rows // ROWS_AT_ONCE, k, 1",
        LAUNCHES,
    ),
    _launches("one expert only", Kind.GRID, "ROWS_AT_ONCE), k, 1", "ROWS_AT_ONCE), 1, 1", EXPERTS),
    _launches(
        "blocks of tokens are not counted",
        Kind.GRID,
        "TOKEN_BLOCK * token_blocks)",
        "TOKEN_BLOCK * (token_blocks + 1))",
        PREFILL,
    ),
    _launches(
        "threads for a SIMD group's rows",
        Kind.GRID,
        "return _ceil_div(rows, SIMD_GROUPS), 1, 1",
        "return _ceil_div(rows, THREADS), 1, 1",
        NORMS,
    ),
    _launches(
        "query heads that share a key head are one",
        Kind.GRID,
        "tokens * (num_heads // num_kv_heads)",
        "tokens",
        ATTENTION,
    ),
    _launches(
        "key heads and parts change places", Kind.GRID, "num_kv_heads, splits", "splits, num_kv_heads", ATTENTION
    ),
    _launches(
        "queries are normed, keys are not",
        Kind.GRID,
        "2 * num_key_heads, SIMD_GROUPS",
        "num_key_heads, SIMD_GROUPS",
        LAUNCHES,
    ),
    _launches(
        "columns of the state past the first SIMD group's", Kind.GRID, "_ceil_div(value_head_dim, LANES)", "1", RULE
    ),
    _launches(
        "columns of an embedding past the last whole tile",
        Kind.GRID,
        "_ceil_div(cols, TILE), tokens",
        "max(1, cols // TILE), tokens",
        EMBEDDINGS,
    ),
    _launches(
        "numbers past the last whole block",
        Kind.GRID,
        "_ceil_div(numbers, CHOICE_BLOCK)",
        "max(1, numbers // CHOICE_BLOCK)",
        TOP_K,
    ),
    _launches(
        "rows of threads are not counted",
        Kind.GRID,
        "_ceil_div(threads, THREADS), rows, 1",
        "_ceil_div(threads, THREADS), 1, 1",
        SUMS,
    ),
    _library(
        "matmul with the threads of matvec",
        Kind.GRID,
        '"matmul_scatter"), MATMUL_THREADS)',
        '"matmul_scatter"), THREADS)',
        PREFILL,
    ),
    _library(
        "embed with a threadgroup of eight SIMD groups", Kind.GRID, '{"embed": LANES}', '{"embed": THREADS}', EMBEDDINGS
    ),
    _library(
        "the delta rule with eight SIMD groups", Kind.GRID, '"delta_rule": RULE_THREADS', '"delta_rule": THREADS', RULE
    ),
    _library("builds are compiled again", Kind.CHECK, "if build not in self._built:", "if True:", DEVICE),
    _library("half floats are taken for bfloat16", Kind.PLACE, '"f16": "F16"', '"f16": "Bf16"', CODES),
    _library(
        "steps and books change places",
        Kind.PLACE,
        '"Steps" if format.family == "affine" else "Books"',
        '"Books" if format.family == "affine" else "Steps"',
        CODES,
    ),
    _library(
        "groups are left out of formats",
        Kind.PLACE,
        'f"Affine<{format.bits}, {format.group_size}, {SCALARS[scalar]}>"',
        'f"Affine<{format.bits}, 64, {SCALARS[scalar]}>"',
    ),
    _library(
        "as many experts as a SIMD group has lanes are refused",
        Kind.BY_ONE,
        "if experts_per_token > LANES",
        "if experts_per_token >= LANES",
    ),
    _library("more experts than a SIMD group has lanes", Kind.CHECK, "if experts_per_token > LANES:", "if False:"),
    _library(
        "query and key heads change places",
        Kind.ORDER,
        "(shape.num_heads, shape.num_kv_heads, shape.head_dim",
        "(shape.num_kv_heads, shape.num_heads, shape.head_dim",
        ATTENTION,
    ),
    _library(
        "head sizes of the delta rule change places",
        Kind.ORDER,
        "shape.key_head_dim, shape.value_head_dim)",
        "shape.value_head_dim, shape.key_head_dim)",
        RULE,
    ),
    _library(
        "parts of a record lie a component too far",
        Kind.PLACE,
        'places.get(f"{projection}.{part}", 0)',
        'places.get(f"{projection}.{part}", 0) + 16',
    ),
    _library(
        "hidden and intermediate size change places",
        Kind.ORDER,
        '"HIDDEN_SIZE": shape.hidden, "MOE_INTERMEDIATE_SIZE": shape.intermediate',
        '"HIDDEN_SIZE": shape.intermediate, "MOE_INTERMEDIATE_SIZE": shape.hidden',
        EXPERTS,
    ),
    _sources("lines after a header are numbered one too low", Kind.BY_ONE, "#line {number + 1}", "#line {number}"),
    _sources("a line of source one too far", Kind.BY_ONE, "lines[line - 1]", "lines[line % len(lines)]"),
    _sources("line 0 is the last", Kind.BY_ONE, "if 0 < line <=", "if 0 <= line <="),
    _sources("macros lose their values", Kind.MISSING, 'f"#define {name} {value}"', 'f"#define {name}"'),
]

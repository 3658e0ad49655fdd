"""What goes wrong on the way to a token on the Metal backend: one sentence, no token, nothing left behind."""

import gc
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkpoints import CheckpointMaker
from metal import standin
from metal.whole import MEMORY, TOLERANCE, Packs, backend_of, on_cpu, on_metal

from moepack.layout.reader import Pack
from moepack.manifests.errors import (
    DeviceError,
    MismatchError,
    MoepackError,
    StorageError,
    UnsupportedError,
    UsageError,
)
from moepack.runtime.arena import HUGE_PAGE
from moepack.runtime.backends.metal import sources
from moepack.runtime.backends.metal.backend import MetalBackend
from moepack.runtime.backends.metal.decoding import DevicePaced
from moepack.runtime.backends.metal.device import Commands, Device
from moepack.runtime.backends.metal.work import Work
from moepack.runtime.doctor import diagnose
from moepack.runtime.engine import Engine, EngineOptions, plan_run
from moepack.runtime.experts import ExpertStream
from moepack.runtime.model import TextModel
from moepack.runtime.report import diagnosis_lines

TOKENS = [5, 99, 17, 250, 3, 41, 7]


@pytest.fixture(scope="module")
def packs(make_checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Packs(tmp_path_factory.mktemp("failing"), make_checkpoint)


@pytest.fixture(scope="module")
def wanted(packs: dict[str, Path]) -> np.ndarray:
    with on_cpu(packs["odd"]) as engine:
        session = engine.new_session()
        return np.stack([session.extend(TOKENS), session.extend([1])])


def check_works(engine: Engine, wanted: np.ndarray) -> None:
    """A new session gives the right logits, and no thread was left."""
    assert not [thread for thread in threading.enumerate() if thread.name == "moepack-answers"]
    session = engine.new_session()
    assert np.abs(np.stack([session.extend(TOKENS), session.extend([1])]) - wanted).max() < TOLERANCE


def refusal(path: Path, kind: type[MoepackError], **options: object) -> str:
    with pytest.raises(kind) as refused, on_metal(path, **options):
        pass
    return str(refused.value)


def test_no_device_is_a_sentence_and_no_other_backend_takes_its_place(fake: ModuleType, packs: dict[str, Path]) -> None:
    fake.configure(device=False)
    assert refusal(packs["odd"], UnsupportedError) == "this machine has no Metal device; run with --backend cpu"


def test_a_device_without_what_kernels_need_is_refused(fake: ModuleType, packs: dict[str, Path]) -> None:
    fake.configure(families=("MTLGPUFamilyApple6",))
    assert "lacks SIMD-group matrices or unified memory" in refusal(packs["odd"], UnsupportedError)


def test_a_working_set_bounds_what_is_planned(fake: ModuleType, packs: dict[str, Path]) -> None:
    path = packs["demo"]
    with on_metal(path, chunk=32) as engine:
        whole = engine.memory
    most = whole.total - whole.process + HUGE_PAGE - 3 * whole.slot_bytes
    fake.configure(working_set=most)
    with on_metal(path, chunk=32) as engine:
        assert engine.memory.slots < whole.slots
        assert engine.memory.total - engine.memory.process <= most
        assert "the GPU's working set of " in engine.memory.reason
    fake.configure(working_set=whole.trunk)
    sentence = refusal(path, UsageError)
    assert "GB are needed, which is for a context of 512 tokens" in sentence
    assert sentence.endswith("run with --backend cpu")


def test_a_budget_is_kept_and_one_that_is_too_small_names_one_that_works(
    fake: ModuleType, packs: dict[str, Path]
) -> None:
    sentence = refusal(packs["odd"], UsageError, memory=100_000_000)
    assert "give --memory 0." in sentence
    budget = int(float(sentence.split("--memory ")[1].split("GB")[0]) * 1e9)
    with on_metal(packs["odd"], memory=budget, chunk=32) as engine:
        assert engine.memory.total <= budget


def test_fewer_slots_than_one_tokens_experts_are_refused(fake: ModuleType, packs: dict[str, Path]) -> None:
    assert refusal(packs["odd"], UsageError, slots=2) == "2 expert slots are too few; streaming needs at least 3 here"


def test_buffers_too_small_for_a_tokens_experts_or_for_a_matrix_are_refused(
    fake: ModuleType, packs: dict[str, Path]
) -> None:
    fake.configure(max_buffer_length=65536)
    assert "this GPU's buffers hold 0 expert records" in refusal(packs["odd"], UsageError)
    fake.configure(max_buffer_length=16384 * 18)
    sentence = refusal(packs["odd"], DeviceError)
    assert "bytes in one buffer" in sentence
    assert sentence.endswith("; run with --backend cpu")


def test_a_kernel_that_does_not_compile_names_the_line(
    fake: ModuleType, packs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources.FOLDER, tmp_path / "kernels")
    router = tmp_path / "kernels" / "router.metal"
    router.write_text(router.read_text().replace("total += best.value;", "total += bset.value;"))
    monkeypatch.setattr(sources, "FOLDER", tmp_path / "kernels")
    sentence = refusal(packs["odd"], UnsupportedError)
    line = router.read_text().splitlines().index("    total += bset.value;") + 1
    assert f"router.metal:{line}: use of undeclared identifier 'bset'" in sentence
    assert sentence.endswith("in `total += bset.value;`")


@pytest.mark.parametrize("after", range(8))
def test_memory_that_the_device_does_not_give_is_a_sentence(
    fake: ModuleType, packs: dict[str, Path], after: int
) -> None:
    fake.refuse_allocations(after=after, count=1)
    sentence = refusal(packs["odd"], DeviceError)
    assert "gave no memory" in sentence or "cannot use" in sentence
    assert sentence.endswith("; give it a smaller --memory, or run with --backend cpu")


@pytest.mark.parametrize("mode", ["in-order", "async", "lazy"])
def test_a_gpu_that_fails_in_a_token_is_told_by_section_and_the_engine_goes_on(
    fake: ModuleType, packs: dict[str, Path], wanted: np.ndarray, mode: str
) -> None:
    fake.configure(mode=mode)
    with on_metal(packs["odd"]) as engine:
        session = engine.new_session()
        session.extend(TOKENS)
        fake.fail_command_buffer(at=1, after=4, sentence="the GPU was reset", code=1)
        with pytest.raises(DeviceError, match=r"^the GPU failed in (attention|delta net) of forward pass: the GPU was"):
            session.extend([1])
        with pytest.raises(UsageError, match="ended by an error"):
            session.extend([1])
        check_works(engine, wanted)


def test_a_gpu_that_fails_at_a_tokens_end_is_told_so(fake: ModuleType, packs: dict[str, Path]) -> None:
    with on_metal(packs["odd"]) as engine:
        session = engine.new_session()
        session.extend(TOKENS)
        before = backend_of(engine).tally.copy()
        session.extend([1])
        spent = backend_of(engine).tally - before
        fake.fail_command_buffer(at=1, after=spent.kernels - 1, sentence="the GPU was reset", code=1)
        with pytest.raises(DeviceError, match=r"^the GPU failed in head of forward pass"):
            session.extend([2])


def test_a_gpu_that_fails_in_a_prompt_is_told_and_the_engine_goes_on(
    fake: ModuleType, packs: dict[str, Path], wanted: np.ndarray
) -> None:
    with on_metal(packs["odd"]) as engine:
        fake.fail_command_buffer(at=3, after=1, sentence="the GPU was reset", code=1)
        with pytest.raises(DeviceError, match="the GPU was reset"):
            engine.new_session().extend(TOKENS)
        check_works(engine, wanted)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("layer", [2, 3], ids=["a layer", "the last layer"])
@pytest.mark.parametrize("mode", ["async", "lazy"])
def test_a_damaged_record_gives_no_token(
    fake: ModuleType, packs: dict[str, Path], wanted: np.ndarray, tmp_path: Path, mode: str, layer: int
) -> None:
    fake.configure(mode=mode)
    shutil.copytree(packs["odd"], tmp_path / "pack")
    files = sorted((tmp_path / "pack" / "experts").iterdir())
    with on_metal(tmp_path / "pack", slots=3) as engine:
        session = engine.new_session()
        session.extend(TOKENS)
        stride = engine.memory.slot_bytes
        damaged = range(100, files[layer].stat().st_size, stride)
        for offset in damaged:
            flip(files[layer], offset)
        with pytest.raises(MismatchError, match=rf"layer_0{layer}\.bin"):
            session.extend([1])
        for offset in damaged:
            flip(files[layer], offset)
        check_works(engine, wanted)


def test_nothing_leaves_before_records_are_found_good(
    fake: ModuleType, packs: dict[str, Path], wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests that are compared late: the last layer's are known to be bad when the token has long been computed."""

    def late(stream: ExpertStream) -> None:
        raise MismatchError("layer 3, expert 1 is damaged")

    with on_metal(packs["odd"]) as engine:
        session = engine.new_session()
        session.extend(TOKENS)
        with monkeypatch.context() as patch:
            patch.setattr(ExpertStream, "confirm", late)
            with pytest.raises(MismatchError, match="expert 1 is damaged"):
                session.extend([1])
        check_works(engine, wanted)


def test_a_file_that_ends_early_gives_no_token(
    fake: ModuleType, packs: dict[str, Path], wanted: np.ndarray, tmp_path: Path
) -> None:
    shutil.copytree(packs["odd"], tmp_path / "pack")
    file = sorted((tmp_path / "pack" / "experts").iterdir())[3]
    content = file.read_bytes()
    with on_metal(tmp_path / "pack", slots=3) as engine:
        session = engine.new_session()
        session.extend(TOKENS)
        file.write_bytes(content[:4096])
        with pytest.raises(StorageError, match=r"layer_03\.bin"):
            session.extend([1])
        file.write_bytes(content)
        check_works(engine, wanted)


@pytest.mark.parametrize("step", ["choose", "one_tokens_experts", "to_host"])
def test_an_interrupt_leaves_nothing_under_way(
    fake: ModuleType, packs: dict[str, Path], wanted: np.ndarray, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_metal(packs["odd"]) as engine:
        session = engine.new_session()
        session.extend(TOKENS)
        calls = []

        def interrupted(*arguments: object) -> None:
            calls.append(step)
            if step == "to_host" or len(calls) == 3:
                if step == "to_host":
                    backend_of(engine).work.commit()
                raise KeyboardInterrupt
            return whole(*arguments)  # type: ignore[no-any-return]

        whole = getattr(backend_of(engine), step)
        with monkeypatch.context() as patch:
            patch.setattr(MetalBackend, step, lambda backend, *arguments: interrupted(*arguments))
            with pytest.raises(KeyboardInterrupt):
                session.extend([1])
        check_works(engine, wanted)


def test_an_interrupt_while_the_answering_thread_starts_leaves_no_thread(
    fake: ModuleType, packs: dict[str, Path], wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "moepack-answers":
            raise KeyboardInterrupt

    with on_metal(packs["odd"]) as engine:
        session = engine.new_session()
        session.extend(TOKENS)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.extend([1])
        check_works(engine, wanted)


@pytest.mark.parametrize("mode", ["async", "lazy"])
def test_an_engine_is_closed_only_once_the_gpu_is_done_whatever_was_interrupted(
    fake: ModuleType, packs: dict[str, Path], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second interrupt comes while the pass that the first one ended waits for its GPU: memory must not be freed."""
    fake.configure(mode=mode)
    with on_metal(packs["odd"]) as engine, monkeypatch.context() as patch:
        session, work = engine.new_session(), backend_of(engine).work

        def interrupted(*_: object) -> None:
            work.commit()
            raise KeyboardInterrupt

        session.extend(TOKENS)
        patch.setattr(MetalBackend, "to_host", interrupted)
        patch.setattr(Commands, "end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.extend([1])
        assert work.under_way == 1
        patch.undo()
        engine.close()
        assert work.under_way == 0


@pytest.mark.parametrize("prompt", [TOKENS, TOKENS[:1]], ids=["prompt", "token"])
@pytest.mark.parametrize("mode", ["async", "lazy"])
def test_an_interrupt_of_an_interrupt_leaves_the_next_session_right(
    fake: ModuleType, packs: dict[str, Path], mode: str, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes where the first one's pass would be dropped, a third where its thread would be waited for."""
    fake.configure(mode=mode)
    with on_metal(packs["odd"]) as engine:
        wanted = engine.new_session().extend(prompt)
        session, third = engine.new_session(), engine.new_session()
        session.extend(TOKENS)

        with monkeypatch.context() as patch:

            def interrupted(*_: object) -> None:
                patch.setattr(Work, "drop", again)
                patch.setattr(DevicePaced, "abandon", again)
                raise KeyboardInterrupt

            def again(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(MetalBackend, "combine", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.extend([1])
            assert backend_of(engine).work.encoding
        assert np.array_equal(third.extend(prompt), wanted)
        assert np.array_equal(engine.new_session().extend(prompt), wanted)
    assert {report.kind for report in fake.found()} <= {"encoding"}  # the host still had that encoder, and ended it


def test_whatever_ends_a_pass_encoding_has_ended(
    fake: ModuleType, packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metal ends the process where an encoder goes away that was never told so."""
    with on_metal(packs["odd"]) as engine, monkeypatch.context() as patch:

        def refused(*_: object) -> None:
            raise StorageError("layer_00.bin cannot be read")

        patch.setattr(MetalBackend, "combine", refused)
        patch.setattr(ExpertStream, "records", refused)
        for prompt in (TOKENS, TOKENS[:1]):
            with pytest.raises(StorageError):
                engine.new_session().extend(prompt)
    assert not fake.found()


def test_the_pack_is_closed_after_all_that_reads_it(packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    for kind in (TextModel, ExpertStream, Pack):
        close = kind.close
        patched = lambda each, kind=kind, close=close: (closed.append(kind.__name__), close(each))  # noqa: E731
        monkeypatch.setattr(kind, "close", patched)
    on_cpu_engine = Engine.open(packs["odd"], EngineOptions(threads=1, memory=MEMORY, backend="cpu"))
    on_cpu_engine.close()
    assert closed == ["TextModel", "ExpertStream", "Pack"]


def test_a_failed_token_keeps_nothing_that_was_lent_to_it(
    fake: ModuleType, packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(stream: ExpertStream, *_: object) -> None:
        raise StorageError("layer_00.bin cannot be read")

    with on_metal(packs["odd"]) as engine:
        session, workspace = engine.new_session(), backend_of(engine).workspace
        session.extend(TOKENS)
        gc.collect()
        gc.disable()
        try:
            free = workspace.free
            monkeypatch.setattr(ExpertStream, "batches", unreadable)
            with pytest.raises(StorageError):
                session.extend([1])
            assert workspace.free == free
        finally:
            gc.enable()


def generate(path: Path, *options: str, settings: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "moepack.runtime", "generate", str(path), "--raw", "-p", "a", "-n", "3", *options]
    environment = None if settings is None else standin.environment(settings)
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_command_line_runs_on_metal_only_where_it_was_asked_to(packs: dict[str, Path]) -> None:
    given = ["--memory", str(MEMORY)]
    on_cpu_, here = generate(packs["demo"], *given), generate(packs["demo"], *given, "--backend", "metal", settings="")
    assert (on_cpu_.returncode, here.returncode) == (0, 0), here.stderr
    assert on_cpu_.stdout == here.stdout
    assert "without Apple hardware" in here.stderr
    assert "without Apple hardware" not in on_cpu_.stderr
    missing = generate(packs["demo"], *given, "--backend", "metal", settings="device=0")
    assert (missing.returncode, missing.stdout) == (5, "")
    assert missing.stderr == "error: this machine has no Metal device; run with --backend cpu\n"


@pytest.mark.skipif(sys.platform == "darwin", reason="there the extra may be installed")
def test_elsewhere_than_on_a_mac_nothing_is_advised_that_would_not_help(packs: dict[str, Path]) -> None:
    missing = generate(packs["demo"], "--backend", "metal")
    assert (missing.returncode, missing.stdout) == (5, "")
    assert missing.stderr == "error: the Metal backend needs a Mac; or run with --backend cpu\n"


def test_on_a_mac_the_extra_is_named(packs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "objc", None)
    with pytest.raises(
        UnsupportedError, match=r"needs PyObjC: pip install 'moepack\[metal\]'; or run with --backend cpu"
    ):
        Device()


def test_doctor_measures_the_gpus_kernels_and_shows_the_gpus_plan(fake: ModuleType, packs: dict[str, Path]) -> None:
    options = EngineOptions(threads=1, memory=MEMORY, backend="metal")
    with Pack.open(packs["odd"]) as pack:
        found = diagnose(pack, options, None)
        assert found.plan == plan_run(pack, options)
    assert str(found.machine.backend).startswith("metal (")
    assert 0 < (found.machine.rates.kernels or 0) < 10_000
    assert found.exact
    lines = "\n".join(diagnosis_lines("odd", found))
    assert f"measured, {found.machine.backend}" in lines
    assert "activations are floats" in lines
    assert "without Apple hardware" in lines


def test_plans_are_those_of_the_backend_that_was_asked_for(fake: ModuleType, packs: dict[str, Path]) -> None:
    with Pack.open(packs["demo"]) as pack:
        plans = [plan_run(pack, EngineOptions(memory=MEMORY, backend=kind)) for kind in ("cpu", "metal", "auto")]
    assert plans[0] != plans[1]
    assert plans[2] == plans[1 if sys.platform == "darwin" else 0]

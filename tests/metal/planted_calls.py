"""Hosts with one fault each that Metal's validation, or the stand-in, refuses at the call itself."""

import struct

import Metal
import objc
from metal import limits
from metal.hosting import Host, bind, run
from metal.planting import pages, planted, wrap

CONCURRENT = Metal.MTLDispatchTypeConcurrent

# Arguments.


@planted("unbound argument", r"scale: buffer 1 .*is not bound")
def never_bound(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "scale") as encoder:
        bind(encoder, [host.buffer("x")])
        run(encoder)


@planted("unbound argument", r"scale: buffer 0 .*is not bound")
def bound_and_unbound_again(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "scale") as encoder:
        bind(encoder, [host.buffer("x"), host.buffer("y"), struct.pack("<f", 1)])
        bind(encoder, [None])
        run(encoder)


@planted("argument too small", r"scale: buffer 2 .*has 2 bytes, and its type has 4")
def half_a_float(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "scale") as encoder:
        bind(encoder, [host.buffer("x"), host.buffer("y"), b"\0\0"])
        run(encoder)


@planted("argument too small", r"scale: buffer 0 .*has 2 bytes, and its type has 4")
def offset_near_the_end(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "scale") as encoder:
        bind(encoder, [host.buffer("x"), host.buffer("y"), struct.pack("<f", 1)])
        encoder.setBufferOffset_atIndex_(254, 0)
        run(encoder)


@planted("misaligned offset", r"scale: buffer 0 .*not a multiple of 4")
def offset_within_a_float(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "scale") as encoder:
        bind(encoder, [host.buffer("x"), host.buffer("y"), struct.pack("<f", 1)])
        encoder.setBuffer_offset_atIndex_(host.buffer("x"), 2, 0)
        run(encoder)


@planted("misaligned offset", r"reversed: buffer 1 .*not a multiple of 16")
def offset_within_a_vector(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "reversed") as encoder:
        bind(encoder, [host.buffer("x"), host.buffer("y")])
        encoder.setBufferOffset_atIndex_(4, 1)
        encoder.setThreadgroupMemoryLength_atIndex_(256, 0)
        run(encoder, 8)


@planted("offset beyond the buffer", r"offset 256 is beyond buffer 'x', of 256 bytes")
def offset_at_the_end(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "increment") as encoder:
        encoder.setBuffer_offset_atIndex_(host.buffer("x"), 256, 0)


@planted("offset beyond the buffer", r"no buffer is bound at 2 whose offset could be set")
def offset_of_bytes(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "scale") as encoder:
        bind(encoder, [host.buffer("x"), host.buffer("y"), struct.pack("<f", 1)])
        encoder.setBufferOffset_atIndex_(0, 2)


@planted("index or bytes over the limit", r"index 31 is not below 31")
def index_beyond_the_last(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "increment") as encoder:
        encoder.setBuffer_offset_atIndex_(host.buffer("x"), 0, limits.MAX_BUFFERS)


@planted("index or bytes over the limit", r"setBytes takes 1 to 4096 bytes, not 4097")
def too_many_bytes(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "increment") as encoder:
        bind(encoder, [bytes(limits.MAX_BYTES + 1)])


def reverse(host: Host, length: int | None) -> None:
    with host.commands() as commands, host.encoder(commands, "reversed") as encoder:
        bind(encoder, [host.buffer("x"), host.buffer("y")])
        if length is not None:
            encoder.setThreadgroupMemoryLength_atIndex_(length, 0)
        run(encoder, 16)


@planted("threadgroup memory", r"reversed: threadgroup 0 .*has no length")
def no_threadgroup_memory(host: Host) -> None:
    reverse(host, None)


@planted("threadgroup memory", r"threadgroup memory 0 is 40, not a multiple of 16")
def odd_threadgroup_memory(host: Host) -> None:
    reverse(host, 40)


@planted("threadgroup memory", r"reversed: 32784 bytes of threadgroup memory are more than 32768")
def too_much_threadgroup_memory(host: Host) -> None:
    reverse(host, limits.THREADGROUP_MEMORY + 16)


@planted("threadgroup memory", r"paired: threadgroup 0 .*has 16 bytes, and its type has 32")
def half_of_what_the_type_has(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "paired") as encoder:
        encoder.setThreadgroupMemoryLength_atIndex_(16, 0)
        run(encoder, 1)


# Grids and pipelines.


@planted("grid", r"increment: 1056 threads per threadgroup are more than 1024")
def too_many_threads(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "increment") as encoder:
        bind(encoder, [host.buffer("x", 2000)])
        encoder.dispatchThreads_threadsPerThreadgroup_((2000, 1, 1), (33, 32, 1))


@planted("grid", r"increment: a grid of \(0, 1, 1\) by \(32, 1, 1\) is empty")
def no_threadgroups(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "increment") as encoder:
        bind(encoder, [host.buffer("x")])
        encoder.dispatchThreadgroups_threadsPerThreadgroup_((0, 1, 1), (32, 1, 1))


@planted("pipeline", r"has no pipeline")
def no_pipeline(host: Host) -> None:
    with host.commands() as commands:
        encoder = commands.computeCommandEncoder()
        bind(encoder, [host.buffer("x")])
        run(encoder)


@planted("pipeline", r"is not a pipeline")
def a_function_for_a_pipeline(host: Host) -> None:
    with host.commands() as commands:
        commands.computeCommandEncoder().setComputePipelineState_(host.library.newFunctionWithName_("increment"))


@planted("pipeline", r"'increment' is not a function")
def a_name_for_a_function(host: Host) -> None:
    host.device.newComputePipelineStateWithFunction_error_("increment", None)


@planted("options", r"131072000 is not a version of the language")
def language_of_the_future(host: Host) -> None:
    Metal.MTLCompileOptions.new().setLanguageVersion_(131072000)


@planted("options", r"7 is not a mode of arithmetic")
def seventh_mode_of_arithmetic(host: Host) -> None:
    Metal.MTLCompileOptions.new().setMathMode_(7)


# Command buffers and encoders.


@planted("commit", r"command buffer 'commands' is committed twice")
def committed_twice(host: Host) -> None:
    with host.commands() as commands:
        host.increment(commands, host.buffer("x"))
    commands.commit()


@planted("commit", r"command buffer 'commands' is committed with an open encoder")
def committed_with_an_open_encoder(host: Host) -> None:
    with host.commands() as commands:
        commands.computeCommandEncoder()


@planted("commit", r"command buffer .* is waited for, and not committed")
def waited_for_before_it_is_committed(host: Host) -> None:
    with objc.autorelease_pool():
        host.queue.commandBuffer().waitUntilCompleted()


@planted("encoder", r"command buffer 'commands' has an open encoder: end it before you make an encoder")
def two_encoders(host: Host) -> None:
    with host.commands() as commands:
        first = commands.computeCommandEncoder()
        commands.blitCommandEncoder()
        first.endEncoding()


@planted("encoder", r"command buffer 'commands' has an open encoder: end it before you encode a signal")
def signal_within_an_encoder(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "increment"):
        commands.encodeSignalEvent_value_(host.device.newEvent(), 1)


@planted("encoder", r"encoder 'increment' has ended")
def dispatch_after_the_end(host: Host) -> None:
    with host.commands() as commands:
        with host.encoder(commands, "increment") as encoder:
            bind(encoder, [host.buffer("x")])
        run(encoder)


@planted("encoder", r"command buffer 'commands' is committed: too late to make an encoder")
def encoding_after_the_commit(host: Host) -> None:
    with host.commands() as commands:
        pass
    commands.computeCommandEncoder()


@planted("encoder", r"too late to add a handler")
def handler_after_the_commit(host: Host) -> None:
    with host.commands() as commands:
        pass
    commands.addCompletedHandler_(lambda _: None)


# Memory.


@planted("buffer over the device limit", r"longer than the device's maximum of 1048576")
def long_buffer(host: Host) -> None:
    Metal.fake.configure(max_buffer_length=1 << 20)
    host.buffer("x", count=(1 << 18) + 1)


@planted("buffer over the device limit", r"longer than the device's maximum of 16384")
def long_wrapped_buffer(host: Host) -> None:
    Metal.fake.configure(max_buffer_length=limits.PAGE)
    wrap(host, pages(2), 2 * limits.PAGE)


@planted("buffer over the device limit", r"a buffer of no bytes")
def empty_buffer(host: Host) -> None:
    host.buffer("x", count=0)


@planted("alignment of wrapped memory", r"is 4096 bytes long, not a multiple of 16384")
def wrapped_part_of_a_page(host: Host) -> None:
    wrap(host, pages(1), 4096)


@planted("alignment of wrapped memory", r"does not begin at a multiple of 16384")
def wrapped_from_within_a_page(host: Host) -> None:
    wrap(host, pages(2)[4096:], limits.PAGE)


@planted("contents", r"buffer 'x' is private")
def contents_of_a_private_buffer(host: Host) -> None:
    host.buffer("x", options=Metal.MTLResourceStorageModePrivate).contents()


@planted("contents", r"257 bytes of buffer 'x', which has 256")
def more_than_there_is(host: Host) -> None:
    host.buffer("x").contents().as_buffer(257)


@planted("storage", r"memory to be wrapped has to be shared")
def private_wrapped_memory(host: Host) -> None:
    private = Metal.MTLResourceStorageModePrivate
    host.device.newBufferWithBytesNoCopy_length_options_deallocator_(pages(1), limits.PAGE, private, None)


@planted("storage", r"options 16 name a storage mode that this device has not")
def managed_buffer(host: Host) -> None:
    host.buffer("x", options=Metal.MTLResourceStorageModeManaged)


def fill(host: Host, location: int, length: int) -> None:
    with host.commands() as commands:
        blit = commands.blitCommandEncoder()
        blit.fillBuffer_range_value_(host.buffer("x"), (location, length), 0)


@planted("range of a copy or fill", r"100 bytes from 200 are not within buffer 'x'")
def fill_beyond_the_end(host: Host) -> None:
    fill(host, 200, 100)


@planted("range of a copy or fill", r"0 bytes from 0 are not within buffer 'x'")
def fill_of_nothing(host: Host) -> None:
    fill(host, 0, 0)


@planted("barrier", r"a barrier of scope 2 is not one of buffers")
def barrier_for_textures(host: Host) -> None:
    with host.commands() as commands, host.encoder(commands, "increment") as encoder:
        encoder.memoryBarrierWithScope_(2)


@planted("barrier", r"encoder 'increment' has ended")
def barrier_after_the_end(host: Host) -> None:
    with host.commands() as commands:
        with host.encoder(commands, "increment") as encoder:
            pass
        encoder.memoryBarrierWithScope_(Metal.MTLBarrierScopeBuffers)


# Concurrent encoders.


@planted("hazard in a concurrent encoder", r"scale and a command before it use buffer 'x', at least one writes it")
def read_after_write_without_a_barrier(host: Host) -> None:
    x, y = host.buffer("x"), host.buffer("y")
    with host.commands() as commands, host.encoder(commands, "increment", CONCURRENT) as encoder:
        bind(encoder, [x])
        run(encoder)
        encoder.setComputePipelineState_(host.pipeline("scale"))
        bind(encoder, [x, y, struct.pack("<f", 1)])
        run(encoder)


@planted("hazard in a concurrent encoder", r"increment and a command before it use buffer 'x', at least one writes it")
def barrier_for_another_buffer(host: Host) -> None:
    x, y = host.buffer("x"), host.buffer("y")
    with host.commands() as commands, host.encoder(commands, "increment", CONCURRENT) as encoder:
        bind(encoder, [x])
        run(encoder)
        encoder.memoryBarrierWithResources_count_([y], 1)
        run(encoder)

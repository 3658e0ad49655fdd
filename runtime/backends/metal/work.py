"""What is enqueued of one forward pass: command buffers that are begun when something is to be run, and waited for.

Promises that a pass leaves nothing under way, whether it ended well or not. Knows no kernel.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ...trace import ON_GPU, WAITING
from .device import Argument, Commands, Device, Event, Pipeline, Size

FORWARD, EXPERTS = "forward pass", "experts"  # sections that several modules name


class Work:
    """The work of a device, one pass at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._label = FORWARD
        self._commands: Commands | None = None
        self._section: str | None = None  # the one that is open
        self._running: list[Commands] = []

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The context of a pass: with its own autorelease pool, and nothing of it under way at its end."""
        self.drop()  # what interrupts of an interrupt may have left
        self._label = FORWARD
        with self._device.pool():
            try:
                yield
                self.finish()
            except BaseException:
                self.drop()
                raise

    def section(self, label: str) -> None:
        """What follows belongs to a section of this name, which a failure would be reported by."""
        self._label = label

    def run(self, pipeline: Pipeline, groups: Size, *arguments: Argument) -> None:
        """Enqueue a kernel, after all before it; one without threadgroups is none."""
        if not all(groups):
            return
        commands = self._begun()
        if self._section != self._label:
            commands.section(self._label)
            self._section = self._label
        commands.run(pipeline, groups, arguments)

    def signal(self, event: Event, value: int) -> None:
        """Raise the event once all before is done."""
        self._begun().signal(event, value)
        self._section = None

    def wait(self, event: Event, value: int) -> None:
        """What follows waits for the event."""
        self._begun().wait(event, value)
        self._section = None

    @property
    def encoding(self) -> bool:
        """Whether there is what was enqueued and not committed."""
        return self._commands is not None

    @property
    def under_way(self) -> int:
        """Command buffers that nobody has waited for."""
        return len(self._running)

    def commit(self) -> None:
        """The GPU may begin with what was enqueued."""
        if self._commands is not None:
            commands, self._commands, self._section = self._commands, None, None
            self._running.append(commands)
            commands.commit()

    def finish(self, left: int = 0) -> None:
        """Let the GPU do everything, and wait until all but the last `left` command buffers are done.

        Raises DeviceError if it failed.
        """
        self.commit()
        while len(self._running) > left:
            self._finish(self._running[0])
            self._running.pop(0)  # after an interrupt it is still there to be waited for

    def drop(self) -> None:
        """Forget what was not committed, and wait for the rest, whatever becomes of it."""
        if self._commands is not None:
            self._commands.discard()
        self._commands, self._section = None, None
        while self._running:
            self._running[0].end()
            self._running.pop(0)

    def _finish(self, commands: Commands) -> None:
        start = time.perf_counter()
        commands.finish()
        trace = self._device.trace
        trace.slice(WAITING, start, time.perf_counter())
        trace.slice(ON_GPU, *commands.times, track="GPU")

    def _begun(self) -> Commands:
        if self._commands is None:
            self._commands = self._device.commands(FORWARD)
            self._section = None
        return self._commands

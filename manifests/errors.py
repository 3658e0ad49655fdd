"""The errors a user can meet, and the exit code of each.

A message is one sentence that names the file, tensor or byte range and says what to do about it. Commands print it
and exit with the class's code; nothing else in the project decides exit codes, and EXIT_CODES says what each means. 1
means that bytes differ and nothing else does: an exception that is none of these has a code of its own.
"""

from typing import ClassVar


class MoepackError(Exception):
    """Base of every error that a command reports in one sentence."""

    exit_code: ClassVar[int] = 3


class MismatchError(MoepackError):
    """Bytes differ from what a pack's manifest or a calibration file's digest promises."""

    exit_code = 1


class UsageError(MoepackError):
    """The request itself cannot be met: a wrong option, a path with nothing there, an existing target."""

    exit_code = 2


class CorruptInputError(MoepackError):
    """A checkpoint or pack is malformed: truncated, overlapping, of the wrong shape, or hostile."""

    exit_code = 3


class StorageError(MoepackError):
    """The disk failed us: no space, no permission, an I/O error, a lock held by somebody else."""

    exit_code = 4


class DeviceError(MoepackError):
    """The GPU failed us: no memory for a buffer, a command buffer that did not complete."""

    exit_code = 4


class UnsupportedError(MoepackError):
    """Well formed, but not something this version handles; the message lists what is."""

    exit_code = 5


DEFECT_EXIT_CODE = 70  # any other exception: a defect of ours, with its traceback (EX_SOFTWARE of sysexits.h)
INTERRUPTED_EXIT_CODE = 130

EXIT_CODES = {
    0: "done",
    MismatchError.exit_code: "bytes differ: from digests, a signature, a source or another pack",
    UsageError.exit_code: (
        "the request cannot be met (usage, a path with nothing there, an existing target, a prompt that is empty or too"
        " long)"
    ),
    CorruptInputError.exit_code: "input is malformed, or output is not finite",
    StorageError.exit_code: "the disk, the network or the GPU failed, or another process holds the target",
    UnsupportedError.exit_code: "not supported",
    DEFECT_EXIT_CODE: "a defect of ours",
    INTERRUPTED_EXIT_CODE: "interrupted",
}
EXIT_CODES_SENTENCE = f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}."

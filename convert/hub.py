"""Fetching a checkpoint from the Hugging Face Hub, through huggingface_hub's own cache and settings.

HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT mean what that library says. Only the files that a checkpoint
consists of are fetched. Failures become one sentence.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..manifests.errors import MoepackError, StorageError, UsageError

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,256})?")


def is_repository_name(text: str) -> bool:
    """Whether `text` looks like `org/name` or `org/name@revision`."""
    return _NAME.fullmatch(text) is not None and not text.startswith(("./", "../", "~"))


def download(repository: str, revision: str | None, small: Sequence[str], weights: Callable[[Path], list[str]]) -> Path:
    """Fetch the `small` files, then the files that `weights` finds named there; the snapshot's directory.

    The directory's name is the resolved commit. Raises UsageError or StorageError.
    """
    directory = _snapshot(repository, revision, small)
    return _snapshot(repository, directory.name, weights(directory))


def _snapshot(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise _explained(repository, revision, error) from error


def _explained(repository: str, revision: str | None, error: Exception) -> MoepackError:
    from huggingface_hub import errors

    what = f"{repository}@{revision}" if revision else repository
    first_line = str(error).strip().partition("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return UsageError(f"{what} is gated: ask for access on its page and set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{repository} has no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return UsageError(f"there is no repository {repository} that you may read; if it is private, set HF_TOKEN")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return StorageError(f"{what} is not in the cache and cannot be fetched: the Hub is offline or out of reach")
    return StorageError(f"fetching {what} failed ({first_line or type(error).__name__}); run the same command to go on")

"""Fetching a checkpoint from the Hugging Face Hub, through huggingface_hub's own cache and settings.

HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT mean what that library says. Only the files that a checkpoint
consists of are fetched. Failures become one sentence.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ..manifests.errors import MoepackError, StorageError, UsageError
from ..manifests.files import gigabytes

REPOSITORY = r"(?!\.{1,2}/)[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}"  # published schemas repeat it
_NAME = re.compile(rf"{REPOSITORY}(@[A-Za-z0-9_./-]{{1,256}})?")


def is_repository_name(text: str) -> bool:
    """Whether `text` looks like `org/name` or `org/name@revision`."""
    return _NAME.fullmatch(text) is not None


def download(repository: str, revision: str | None, small: Sequence[str], weights: Callable[[Path], list[str]]) -> Path:
    """Fetch the `small` files, then the files that `weights` finds named there; the snapshot's directory.

    The directory's name is the resolved commit. Raises UsageError or StorageError, the latter also before the weights
    are fetched if the cache's disk has no room for them.
    """
    directory = _snapshot(repository, revision, small)
    names = weights(directory)
    _require_space(repository, directory, [name for name in names if not (directory / name).exists()])
    return _snapshot(repository, directory.name, names)


def _snapshot(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise _explained(repository, revision, error) from error


def _require_space(repository: str, directory: Path, missing: Sequence[str]) -> None:
    needed, free = _bytes_to_fetch(repository, directory, missing), shutil.disk_usage(directory).free
    if needed > free:
        raise StorageError(
            f"{repository} has {gigabytes(needed)} left to fetch and the cache {directory} has {gigabytes(free)} free;"
            " make room or set HF_HOME to another disk"
        )


def _bytes_to_fetch(repository: str, directory: Path, missing: Sequence[str]) -> int:
    """The size of `missing` files of a snapshot as the Hub tells it, less what is there in part; 0 if it is mute."""
    from huggingface_hub import HfApi, constants

    if not missing or constants.HF_HUB_OFFLINE:
        return 0
    try:
        info = HfApi().model_info(repository, revision=directory.name, files_metadata=True)
    except Exception:  # whatever hinders this will hinder fetching, which has the words for it
        return 0
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    begun = sum(path.stat().st_size for path in (directory.parent.parent / "blobs").glob("*.incomplete"))
    return max(0, sum(sizes.get(name, 0) for name in missing) - begun)


def _explained(repository: str, revision: str | None, error: Exception) -> MoepackError:
    from huggingface_hub import errors

    what = f"{repository}@{revision}" if revision else repository
    first_line = str(error).strip().partition("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return UsageError(f"{what} is gated: ask for access on its page and set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{repository} has no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return UsageError(
            f"there is no repository {repository} that you may read, and there is no such directory here;"
            " if it is private, set HF_TOKEN"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return StorageError(
            f"{what} is not in the cache and cannot be fetched: the Hub is offline or out of reach;"
            " and there is no such directory here"
        )
    return StorageError(f"fetching {what} failed ({first_line or type(error).__name__}); run the same command to go on")

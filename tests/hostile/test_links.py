"""No link inside a pack is ever followed: neither one planted before, nor one swapped in while the pack is open."""

import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tinypack import build, tiny_plan

from moepack.layout.reader import Pack
from moepack.manifests.errors import CorruptInputError, MoepackError
from moepack.manifests.files import Folder, open_regular, read_small, status
from moepack.manifests.progress import Silent
from moepack.manifests.verify import verify

SECRET = b"what the user did not mean to show"
RACES = 300


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    build(tmp_path / "pack", tiny_plan(tmp_path))
    return tmp_path / "pack"


def linked(path: Path) -> None:
    """Put a link to a twin of the same bytes in the place of a file or a folder."""
    twin = path.with_name(f"{path.name}.twin").absolute()
    twin = path.parents[2 if path.parent.name == "experts" else 1] / twin.name
    path.rename(twin)
    path.symlink_to(twin, target_is_directory=twin.is_dir())


@pytest.mark.parametrize("name", ["manifest.json", "digests.bin", "trunk.safetensors", "config.json"])
def test_a_link_in_a_files_place_is_refused(pack: Path, name: str) -> None:
    linked(pack / name)
    with pytest.raises(CorruptInputError, match="symbolic link"):
        Pack.open(pack)


@pytest.mark.parametrize("name", ["experts", "experts/layer_01.bin"])
def test_a_link_on_the_way_to_a_layer_is_refused(pack: Path, name: str) -> None:
    linked(pack / name)
    with pytest.raises(CorruptInputError, match="symbolic link"):
        Pack.open(pack)
    assert not verify(pack, threads=1, progress=Silent()).ok


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "experts/../../secret", "", ".", "experts/", "a\0b", "./config.json"]
)
def test_a_folder_opens_only_plain_names(pack: Path, name: str) -> None:
    (pack.parent / "secret").write_bytes(SECRET)
    with Folder(pack) as folder:
        for use in (open_regular, status):
            with pytest.raises(CorruptInputError, match="not a name that a file of a pack may have"):
                use(folder / name)


def test_a_pack_that_was_moved_away_is_still_the_one_that_was_opened(pack: Path) -> None:
    with Pack.open(pack) as opened:
        pack.rename(pack.with_name("elsewhere"))
        pack.mkdir()
        (pack / "config.json").write_bytes(SECRET)
        assert read_small(opened.folder / "config.json", 1000) == b'{"model_type": "tiny"}'


@contextmanager
def swapping(place: Path, first: Path, second: Path) -> Iterator[None]:
    """While the block runs, another thread puts `first` and `second` at `place` in turn, as fast as it can."""
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for source in (first, second):
                link = place.with_name("next")
                link.symlink_to(source.readlink()) if source.is_symlink() else link.hardlink_to(source)
                link.rename(place)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("use", [read_small, lambda place, limit: open_and_stat(place)], ids=["read", "check and read"])
def test_a_link_swapped_in_between_check_and_open_is_harmless(tmp_path: Path, use: Callable[..., bytes]) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    good, bad, place = tmp_path / "good", tmp_path / "bad", tmp_path / "pack/config.json"
    good.write_bytes(b"{}")
    bad.symlink_to(tmp_path / "secret")
    place.parent.mkdir()
    place.symlink_to(tmp_path / "secret")
    read, refused = 0, 0
    with Folder(place.parent) as folder, swapping(place, good, bad):
        for _ in attempts():
            if min(read, refused) >= RACES:
                break
            try:
                assert use(folder / "config.json", 1000) == b"{}"
                read += 1
            except MoepackError:
                refused += 1
    assert read >= RACES <= refused  # both happened, and no read ever went through the link


def attempts() -> Iterator[None]:
    """Attempts for half a minute; then both outcomes should have been seen."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        yield


def open_and_stat(place: object) -> bytes:
    """What a careless reader would do: look at the name, and open it when it looked right."""
    if not stat.S_ISREG(status(place).st_mode):  # type: ignore[arg-type]
        raise CorruptInputError("a link")
    return read_small(place, 1000)  # type: ignore[arg-type]


def test_a_folder_swapped_for_a_link_is_harmless(pack: Path, tmp_path: Path) -> None:
    """The folder `experts` is exchanged for a link to one whose files have the same names, again and again."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "layer_00.bin").write_bytes(SECRET)
    experts, aside, link = pack / "experts", pack / "aside", pack / "link"
    link.symlink_to(other, target_is_directory=True)
    done, seen = threading.Event(), {"read": 0, "refused": 0}

    def swap() -> None:
        while not done.is_set():
            experts.rename(aside)
            link.rename(experts)
            experts.rename(link)
            aside.rename(experts)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        with Folder(pack) as folder:
            for _ in attempts():
                if min(seen.values()) >= RACES:
                    break
                try:
                    assert read_small(folder / "experts/layer_00.bin", 10**6) != SECRET
                    seen["read"] += 1
                except MoepackError:
                    seen["refused"] += 1
    finally:
        done.set()
        thread.join()
    assert min(seen.values()) >= RACES

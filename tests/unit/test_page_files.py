"""Page files on a real file system: found again, removed when done with, and nothing else."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from paging.disk import Fault
from paging.files import CACHED_FILES, HEAD_BYTES, KEEP, FileFault, PageFiles
from paging.pagefile import HEADER, BlockImage, Book, PageKey
from tanist.wire.batch import seal

LIFE = bytes(range(16))
EARLIER = bytes(range(1, 17))
BOOK = Book(sid=7, gen=2, part=0, copy=1)
KEY = PageKey(BOOK, first=100, version=1)


@pytest.fixture
def files(tmp_path: Path) -> PageFiles:
    return PageFiles.open(tmp_path, LIFE)


def blocks(first: int, count: int, *, body_bytes: int = 10_000) -> list[BlockImage]:
    """Each of one message."""
    return [
        BlockImage(
            first + at,
            seal([b"%d" % at * body_bytes], [], flags=0, first_n=1, time_ms=7),
            None,
        )
        for at in range(count)
    ]


def written(files: PageFiles, key: PageKey = KEY, *, count: int = 3) -> list[BlockImage]:
    made = blocks(key.first, count)
    files.write(key, key.first + count, made)
    return made


def below(directory: Path) -> set[str]:
    """All files there."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def test_a_page_is_read_as_it_was_written(files: PageFiles, tmp_path: Path) -> None:
    # Given a page on the disk
    made = blocks(KEY.first, 3)
    size = files.write(KEY, 103, made)

    # When it is read, and one block of it alone
    image = files.read(KEY)
    block = files.read_block(KEY, 101)

    # Then both give the batches, and the block no bytes but its own
    assert [bytes(found.image().data) for found in image.blocks] == [data for _, data, _ in made]
    assert block.data == made[1].data
    assert (block.first, block.end) == (101, 102)
    # And the file is where an operator would look for it
    name = f"pages/{LIFE.hex()}/7-2-0-1/0000000000000064.1.page"
    assert below(tmp_path) == {name}
    assert size == (tmp_path / name).stat().st_size


def test_a_page_has_more_blocks_than_are_written_or_read_at_once(files: PageFiles) -> None:
    # Given more buffers than one `writev` takes, and a directory longer than the first read
    count = os.sysconf("SC_IOV_MAX") + 100
    made = blocks(KEY.first, count, body_bytes=1)

    # When they are written and read
    size = files.write(KEY, KEY.first + count, made)
    last = files.read_block(KEY, KEY.first + count - 1)

    # Then all are there
    assert size > HEAD_BYTES
    assert len(files.read(KEY).blocks) == count
    assert last.data == made[-1].data


def test_a_short_write_is_continued(files: PageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a system that never takes more than 4,000 bytes of the first two buffers
    def writev(fd: int, buffers: list[bytes | memoryview]) -> int:
        return os.write(fd, b"".join(buffers[:2])[:4_000])

    monkeypatch.setattr("paging.files.os.writev", writev)

    # When a page is written
    made = written(files)

    # Then nothing is missing, and nothing there twice
    assert [bytes(found.image().data) for found in files.read(KEY).blocks] == [
        data for _, data, _ in made
    ]


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (errno.ENOSPC, Fault.FULL),
        (errno.EDQUOT, Fault.FULL),
        (errno.EIO, Fault.BROKEN),
        (errno.EROFS, Fault.BROKEN),
    ],
)
def test_a_write_that_fails_half_way_leaves_no_file_and_says_why(
    files: PageFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    fault: Fault,
) -> None:
    # Given a disk that takes 4,000 bytes and no more
    def writev(fd: int, buffers: list[bytes | memoryview]) -> int:
        if os.fstat(fd).st_size:
            raise OSError(number, os.strerror(number))
        return os.write(fd, b"".join(buffers)[:4_000])

    # When a page is written
    with monkeypatch.context() as patched:
        patched.setattr("paging.files.os.writev", writev)
        with pytest.raises(FileFault) as caught:
            written(files)

    # Then nothing is left of it, and the sentence names the file and what the system said
    assert below(tmp_path) == set()
    assert caught.value.fault is fault
    assert str(files.path(KEY)) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    # And once there is room again, so is the page
    written(files)
    assert files.read(KEY).end == 103


def test_what_the_system_says_only_at_the_close_counts(
    files: PageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(fd: int) -> None:
        closed(fd)
        raise OSError(errno.EDQUOT, "quota")

    closed = os.close
    with monkeypatch.context() as patched:
        patched.setattr("paging.files.os.close", close)
        with pytest.raises(FileFault, match="quota") as caught:
            written(files)

    assert caught.value.fault is Fault.FULL
    assert below(tmp_path) == set()


def test_a_page_is_never_written_over_another(files: PageFiles) -> None:
    made = written(files)

    with pytest.raises(FileFault, match="File exists") as caught:
        files.write(KEY, 200, blocks(KEY.first, 1))

    assert caught.value.fault is Fault.BROKEN
    assert files.read(KEY).blocks[2].image().data == made[2].data


def test_directories_that_were_removed_are_made_again(files: PageFiles, tmp_path: Path) -> None:
    # Given that somebody clears the wrong directory
    written(files)
    subprocess.run(["rm", "-r", str(tmp_path / "pages")], check=True)

    # When the pages in it are read, and others written
    with pytest.raises(FileFault, match="No such file") as caught:
        files.read(KEY)
    with pytest.raises(FileFault, match="No such file") as caught_block:
        files.read_block(KEY, 100)
    other = KEY._replace(first=200)
    written(files, other)

    # Then the former are gone, and the latter are there
    assert caught.value.fault is caught_block.value.fault is Fault.GONE
    assert files.read(other).end == 203
    assert files.free_bytes() > 0


def test_a_file_where_a_directory_should_be_is_a_fault(files: PageFiles, tmp_path: Path) -> None:
    (tmp_path / "pages" / LIFE.hex() / "7-2-0-1").write_text("mine")

    with pytest.raises(FileFault):
        written(files)
    with pytest.raises(FileFault):
        files.read(KEY)


@pytest.mark.parametrize("at", [0, 30, HEADER.size + 3, 10_500])
def test_a_damaged_page_is_refused_with_a_sentence(files: PageFiles, at: int) -> None:
    # Given one altered byte: in magic, header, directory, or the block in the middle
    written(files)
    path = files.path(KEY)
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)

    # When the page is read, or that block
    with pytest.raises(FileFault, match=f"{path} cannot be used: .*: check the disk") as page:
        files.read(KEY)
    with pytest.raises(FileFault, match=f"{path} cannot be used: .*: check the disk") as block:
        files.read_block(KEY, 101)

    # Then it is known to be damaged; and a block is read that has nothing to do with it
    assert page.value.fault is block.value.fault is Fault.DAMAGED
    if at > 10_000:
        assert files.read_block(KEY, 100).first == 100


@pytest.mark.parametrize("length", [0, 50, HEADER.size + 3, 10_500])
def test_a_page_that_was_cut_is_refused(files: PageFiles, length: int) -> None:
    written(files)
    os.truncate(files.path(KEY), length)

    with pytest.raises(FileFault, match="truncated"):
        files.read(KEY)
    with pytest.raises(FileFault, match="truncated"):
        files.read_block(KEY, 101)


def test_pages_that_swapped_their_names_are_refused(files: PageFiles) -> None:
    # Given two intact pages under each other's name
    other = KEY._replace(version=2)
    written(files)
    written(files, other, count=2)
    one, two = files.path(KEY), files.path(other)
    one.rename(one.with_suffix(".x"))
    two.rename(one)
    one.with_suffix(".x").rename(two)

    for key in (KEY, other):
        # When one of them is read
        with pytest.raises(FileFault, match="another page") as caught:
            files.read(key)
        with pytest.raises(FileFault, match="another page"):
            files.read_block(key, 100)

        # Then it is not taken for the other
        assert caught.value.fault is Fault.DAMAGED


def test_pages_are_removed_and_one_that_is_not_there_is_as_good_as_removed(
    files: PageFiles, tmp_path: Path
) -> None:
    # Given two pages
    other = KEY._replace(first=200)
    written(files)
    written(files, other)
    size = files.path(KEY).stat().st_size

    # When one is removed, with one that never was, and then once more
    removal = files.remove([KEY, KEY._replace(first=300)])
    again = files.remove([KEY])

    # Then the other one stays
    assert (removal.files, removal.bytes, removal.left) == (1, size, [])
    assert (again.files, again.bytes, again.left) == (0, 0, [])
    assert len(below(tmp_path)) == 1
    assert files.read(other).end == 203


def test_a_book_goes_with_its_directory_and_leaves_the_others(
    files: PageFiles, tmp_path: Path
) -> None:
    # Given two books
    other = PageKey(BOOK._replace(copy=2), 0, 1)
    for key in (KEY, KEY._replace(first=200), other):
        written(files, key)

    # When one is removed, twice
    removal = files.remove_book(BOOK)
    again = files.remove_book(BOOK)

    # Then it is gone, and can be made again
    assert (removal.files, removal.left) == (2, [])
    assert (again.files, again.left) == (0, [])
    assert not files.path(KEY).parent.exists()
    assert files.read(other).end == 3
    written(files)


def test_what_is_not_a_page_stays_and_is_named(files: PageFiles, tmp_path: Path) -> None:
    # Given a book in whose directory there are other things, and links that look like pages
    written(files)
    directory = files.path(KEY).parent
    outside = tmp_path / "precious"
    outside.write_text("mine")
    (directory / "notes.txt").write_text("mine")
    (directory / "00000000000000ff.1.page").symlink_to(outside)
    (directory / "0000000000000100.1.page").mkdir()

    # When it is removed, and then the whole life
    removal = files.remove_book(BOOK)
    life = files.remove_life()

    # Then only the page is
    assert removal.files == 1
    assert {sentence.partition(" stays: ")[0] for sentence in removal.left} == {
        str(directory / name)
        for name in ("notes.txt", "00000000000000ff.1.page", "0000000000000100.1.page")
    }
    assert life.files == 0
    assert outside.read_text() == (directory / "notes.txt").read_text() == "mine"


def test_a_removal_that_fails_goes_on_with_the_others(
    files: PageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a disk that cannot remove one of two files
    def unlink(path: Path) -> None:
        if path == files.path(KEY):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        removed(path)

    removed = os.unlink
    other = KEY._replace(first=200)
    written(files)
    written(files, other)

    # When both are to be removed
    with monkeypatch.context() as patched:
        patched.setattr("paging.files.os.unlink", unlink)
        removal = files.remove([KEY, other])

    # Then the other one is, and the sentence says which was not
    assert removal.files == 1
    (sentence,) = removal.left
    assert sentence.startswith(f"{files.path(KEY)} cannot be removed: Input/output error")
    assert files.path(KEY).exists()


def test_the_system_is_told_to_forget_what_consumers_come_to_last(
    files: PageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given as many pages as the system may keep, of which the second is removed again
    told: list[str] = []
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda fd, at, size, advice: told.append(
            f"{Path(os.readlink(f'/proc/self/fd/{fd}')).name} {at} {size} {advice}"
        ),
    )
    keys = [PageKey(BOOK, first, 1) for first in range(1, CACHED_FILES + 4)]
    advice = [f"{files.path(key).name} 0 0 {os.POSIX_FADV_DONTNEED}" for key in keys]
    for key in keys[:CACHED_FILES]:
        written(files, key, count=1)
    assert told == advice[:CACHED_FILES], "which starts to write them"
    files.remove(keys[1:2])
    told.clear()

    # When more follow, and one is read
    for key in keys[CACHED_FILES:]:
        written(files, key, count=1)
    files.read(keys[5])

    # Then for each of them the oldest is forgotten, and so is what was read
    last = advice[CACHED_FILES:]
    assert told == [last[0], advice[0], last[1], last[2], advice[2], advice[5]]


def test_a_file_system_that_knows_no_advice_has_pages_as_well(
    files: PageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(fd: int, at: int, size: int, advice: int) -> None:
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, "posix_fadvise", refused)

    written(files)

    assert len(files.read(KEY).blocks) == 3


def test_the_end_of_a_life_leaves_nothing(files: PageFiles, tmp_path: Path) -> None:
    written(files)
    written(files, PageKey(BOOK._replace(part=9), 0, 1))

    removal = files.remove_life()

    assert (removal.files, removal.left) == (2, [])
    assert list((tmp_path / "pages").iterdir()) == []


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    # Given pages of two earlier lives, one of which somebody wants to keep, and foreign things
    earlier, kept = PageFiles.open(tmp_path, EARLIER), PageFiles.open(tmp_path, bytes(16))
    for copy in range(3):
        written(earlier, PageKey(BOOK._replace(copy=copy), 0, 1))
    written(kept)
    pages = tmp_path / "pages"
    (pages / bytes(16).hex() / KEEP).touch()
    (pages / "lost+found").mkdir()
    (pages / LIFE.hex().upper()).mkdir()
    outside = tmp_path / "elsewhere"
    (outside / "7-2-0-1").mkdir(parents=True)
    (outside / "7-2-0-1" / "0000000000000064.1.page").touch()
    (pages / ("f" * 32)).symlink_to(outside)
    files = PageFiles.open(tmp_path, LIFE)
    made = written(files)

    # When the next life clears up
    progress = [(so_far.files, so_far.bytes) for so_far in files.remove_earlier_lives()]
    again = [so_far.files for so_far in files.remove_earlier_lives()]

    # Then the pages of the one life are gone, and everything else is as it was
    size = len(made[0].data) * 3
    assert [files for files, _ in progress if files] == sorted(
        files for files, _ in progress if files
    )
    assert progress[-1][0] == 3
    assert progress[-1][1] > 3 * size
    assert len({files for files, _ in progress}) == 4  # It was told book by book.
    assert sum(again) == 0
    assert {path.name for path in pages.iterdir()} == {
        *(LIFE.hex(), bytes(16).hex(), "lost+found", LIFE.hex().upper(), "f" * 32)
    }
    assert kept.read(KEY).end == files.read(KEY).end == 103
    assert len(below(outside)) == 1


def test_what_stays_of_earlier_lives_is_named(tmp_path: Path) -> None:
    # Given a life that is kept, and one with a foreign directory in it
    PageFiles.open(tmp_path, EARLIER)
    PageFiles.open(tmp_path, bytes(16))
    pages = tmp_path / "pages"
    (pages / bytes(16).hex() / KEEP).touch()
    (pages / EARLIER.hex() / "backup").mkdir()

    # When the next life clears up
    *_, last = PageFiles.open(tmp_path, LIFE).remove_earlier_lives()

    # Then both are named, with the reason
    assert sorted(last.left) == [
        f"{pages / bytes(16).hex()} stays: it has a file named {KEEP}",
        f"{pages / EARLIER.hex() / 'backup'} stays: it is not a directory of pages",
    ]


def test_a_directory_in_which_nothing_can_be_made_is_known_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "pages").write_text("mine")

    with pytest.raises(FileFault, match=f"{tmp_path}/pages.* cannot be made: .*"):
        PageFiles.open(tmp_path, LIFE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tanist-test", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_full_takes_pages_again_once_there_is_room(small_disk: Path) -> None:
    # Given a disk that is filled with pages until it is full
    files = PageFiles.open(small_disk, LIFE)
    keys: list[PageKey] = []

    def fill() -> None:
        for first in range(0, 10_000, 10):
            written(files, KEY._replace(first=first), count=10)
            keys.append(KEY._replace(first=first))

    with pytest.raises(FileFault, match="No space left on device: free space") as caught:
        fill()
    left = files.free_bytes()

    # When a page is removed
    files.remove([keys[0]])

    # Then the page that failed has left nothing, the others are intact, and there is room
    assert caught.value.fault is Fault.FULL
    assert len(below(small_disk)) == len(keys) - 1 > 5
    assert left < 110_000 < files.free_bytes()
    written(files, KEY._replace(first=10_000), count=10)
    for key in keys[1:]:
        assert len(files.read(key).blocks) == 10


def test_no_page_takes_what_is_to_be_left_free_on_the_disk(tmp_path: Path) -> None:
    # Given a node that leaves more free than there is
    files = PageFiles.open(tmp_path, LIFE, free_bytes_min=1 << 60)

    # When a page is written
    with pytest.raises(FileFault, match=r"are free, and 1,152,921,504,606,846,976") as failed:
        written(files)

    # Then the disk counts as full, and there is no file
    assert failed.value.fault is Fault.FULL
    assert below(tmp_path) == set()

"""The file of votes: after whatever happened to it, it is old, new, or known to be damaged."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from replication.slotfile import (
    BLOCK_BYTES,
    SLOT_BYTES,
    STATE_BYTES_MAX,
    SlotFile,
    SlotFileDamaged,
    SlotFileError,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vote"


def written(path: Path, *states: bytes) -> None:
    file = SlotFile(path)
    for state in states:
        file.write(state)
    file.close()


def found(path: Path) -> bytes | None:
    file = SlotFile(path)
    file.close()
    return file.state


def test_what_was_written_last_is_found(path: Path) -> None:
    states = [bytes([n]) * (n * 1_000) for n in range(1, 8)]

    for count in range(1, len(states) + 1):
        path.unlink(missing_ok=True)
        written(path, *states[:count])

        assert found(path) == states[count - 1]


def test_a_file_that_never_was_is_fresh_and_not_damaged(path: Path) -> None:
    assert found(path) is None
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 1, 487, 488, 489, 980, STATE_BYTES_MAX])
def test_states_of_all_sizes_fit(path: Path, size: int) -> None:
    state = random.Random(size).randbytes(size)

    written(path, b"before", state)

    assert found(path) == state


def test_a_write_goes_on_where_the_last_process_stopped(path: Path) -> None:
    written(path, b"one", b"two")
    written(path, b"three")
    written(path, b"four")

    assert found(path) == b"four"


def test_a_torn_write_leaves_the_state_before_it(path: Path) -> None:
    # Given the bytes of the file before and after a write of many blocks
    written(path, b"1" * 20_000, b"2" * 15_000, b"3" * 18_000)
    before = path.read_bytes()
    written(path, b"4" * 20_000)
    after = path.read_bytes()
    chance = random.Random(7)

    for _ in range(100):
        # When only some of the blocks reached the disk, in any order
        content = bytearray(before)
        changed = [at for at in range(0, len(before), BLOCK_BYTES) if _differ(before, after, at)]
        for at in chance.sample(changed, chance.randrange(1, len(changed))):
            content[at : at + BLOCK_BYTES] = after[at : at + BLOCK_BYTES]
        path.write_bytes(content)

        # Then the state before is the truth, since nobody was told of the new one
        assert found(path) == b"3" * 18_000


def _differ(before: bytes, after: bytes, at: int) -> bool:
    return before[at : at + BLOCK_BYTES] != after[at : at + BLOCK_BYTES]


def test_a_flipped_bit_never_takes_the_file_back_in_time(path: Path) -> None:
    # Given a file with two states of one block each
    written(path, b"old" * 100, b"new" * 100)
    content = path.read_bytes()
    used = [*range(BLOCK_BYTES), *range(SLOT_BYTES, SLOT_BYTES + BLOCK_BYTES)]

    for at in used:
        # When any bit of them is flipped
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)

        # Then the file is refused, whichever of the states it was
        with pytest.raises(SlotFileDamaged, match="remove the file"):
            SlotFile(path)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, SLOT_BYTES, 2 * SLOT_BYTES - 1])
def test_a_truncated_file_is_damaged_and_not_fresh(path: Path, size: int) -> None:
    written(path, b"one", b"two")
    os.truncate(path, size)

    with pytest.raises(SlotFileDamaged, match=f"{size} bytes"):
        SlotFile(path)


def test_a_file_of_zeros_is_damaged_and_not_fresh(path: Path) -> None:
    path.write_bytes(bytes(2 * SLOT_BYTES))

    with pytest.raises(SlotFileDamaged, match="neither slot"):
        SlotFile(path)


def test_slots_that_changed_places_are_damaged(path: Path) -> None:
    written(path, b"one", b"two")
    content = path.read_bytes()
    path.write_bytes(content[SLOT_BYTES:] + content[:SLOT_BYTES])

    with pytest.raises(SlotFileDamaged):
        SlotFile(path)


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_after_an_error_it_never_writes_again(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a file whose disk fails once
    file = SlotFile(path)
    file.write(b"one")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, _fails)
        with pytest.raises(SlotFileError, match="cannot be written"):
            file.write(b"two")

    # When the disk would work again, then nothing is written all the same
    with pytest.raises(SlotFileError, match="failed earlier"):
        file.write(b"three")
    assert file.state == b"one"
    file.close()
    assert found(path) in (b"one", b"two")


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_a_file_that_could_not_be_made_is_not_there(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SlotFile(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, _fails)
        with pytest.raises(SlotFileError):
            file.write(b"one")

    assert found(path) is None
    assert list(path.parent.iterdir()) == []
    with pytest.raises(SlotFileError):
        file.write(b"two")


def test_the_directory_is_synced_after_the_rename(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(fd: int) -> None:
        calls.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        sync(fd)

    def noted_rename(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    written(path, b"one")

    assert calls == ["file", "rename", "directory"]


def _fails(*_: object) -> int:
    raise OSError(5, "Input/output error")

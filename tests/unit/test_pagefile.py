"""The page file: it gives back what was put in, or says that it is not the page that was meant."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, strategies as st

from paging.pagefile import (
    ENTRY,
    HEADER,
    BlockImage,
    Book,
    Directory,
    PageFileError,
    PageImage,
    PageKey,
    decode,
    decode_directory,
    directory_end,
    encode,
)
from tanist.wire.batch import Batch, seal

LIFE = bytes(range(16))
BOOK = Book(sid=7, gen=1 << 40, part=3, copy=2)
KEY = PageKey(BOOK, first=1_000, version=4)
GOLDEN = Path(__file__).parent / "golden" / "page.hex"


def sealed(count: int, *, body: bytes = b"body") -> bytes:
    return seal([body] * count, [], flags=0, first_n=1, time_ms=7)


class Stored(NamedTuple):
    """A batch, and where its messages are."""

    first: int
    end: int
    data: bytes


def lone(first: int, count: int, body: bytes) -> tuple[BlockImage, list[Stored]]:
    data = sealed(count, body=body)
    return BlockImage(first, data, None), [Stored(first, first + count, data)]


def shared(first: int, counts: list[int], gaps: list[int]) -> tuple[BlockImage, list[Stored]]:
    """A packed block: after each batch, as many messages as its gap says are missing."""
    stored: list[Stored] = []
    places = array("I")
    packed = b""
    at = first
    for number, (count, gap) in enumerate(zip(counts, gaps, strict=True)):
        data = sealed(count, body=b"%d" % number)
        places.append(at - first << 16 | len(packed))
        packed += data
        stored.append(Stored(at, at + count, data))
        at += count + gap
    return BlockImage(first, packed, places), stored


class Page(NamedTuple):
    end: int
    blocks: list[BlockImage]
    stored: list[Stored]

    def file(self, key: PageKey = KEY, life: bytes = LIFE) -> bytes:
        return b"".join(encode(key, life, self.end, self.blocks))


def page_of(*made: tuple[BlockImage, list[Stored]], end: int) -> Page:
    return Page(end, [block for block, _ in made], [one for _, some in made for one in some])


# A large batch, small ones with a gap, and another large one after a gap.
PAGE = page_of(
    shared(1_000, [1, 3, 2], [0, 4, 0]),
    lone(1_010, 2, b"x" * 9_000),
    shared(1_100, [5], [0]),
    end=1_200,
)


@st.composite
def pages(draw: st.DrawFn) -> Page:
    made = []
    at = KEY.first + draw(st.integers(0, 5))
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            block = lone(at, draw(st.integers(1, 4)), draw(st.binary(max_size=2_000)))
        else:
            counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
            gaps = [draw(st.integers(0, 3)) for _ in counts]
            block = shared(at, counts, gaps)
        made.append(block)
        at = block[1][-1].end + draw(st.integers(0, 4))
    return page_of(*made, end=at + draw(st.integers(0, 3)))


def found(batch: Batch) -> bytes:
    return batch.data[batch.start : batch.start + batch.size]


def assert_gives(image: PageImage, page: Page) -> None:
    for first, end, data in page.stored:
        for offset in range(first, end):
            batch, batch_first = image.find(offset)
            assert (batch_first, found(batch)) == (first, data)


@given(page=pages())
def test_every_message_is_found_as_it_was_put_in(page: Page) -> None:
    # Given a page with blocks of both kinds, and gaps as a rewrite leaves them
    file = page.file()

    # When it is read as a whole, and block by block
    image = decode(file, KEY, LIFE)
    directory = decode_directory(file[: directory_end(file)], KEY, LIFE)

    # Then each offset leads to its batch, and the numbers are those that went in
    assert_gives(image, page)
    assert (image.first, image.end) == (KEY.first, page.end)
    assert image.bytes == sum(len(block.data) for block in page.blocks)
    for first, end, data in page.stored:
        index = directory.index_of(end - 1)
        entry = directory.entries[index]
        block = directory.block(index, file[entry.position : entry.position + entry.size])
        batch, batch_first = block.find(end - 1)
        assert (batch_first, found(batch)) == (first, data)
        assert block.first <= first < end <= block.end


@given(page=pages(), data=st.data())
def test_no_bit_can_be_flipped_unseen(page: Page, data: st.DataObject) -> None:
    # Given a page, one bit of which is not what was written
    file = bytearray(page.file())
    bit = data.draw(st.integers(0, 8 * len(file) - 1))
    file[bit // 8] ^= 1 << bit % 8

    # When it is read
    with pytest.raises(PageFileError):
        decode(bytes(file), KEY, LIFE)

    # Then it is refused; and of the blocks each other one can still be read alone
    refused = 0
    try:
        directory = decode_directory(bytes(file), KEY, LIFE)
    except PageFileError:
        return
    for index, entry in enumerate(directory.entries):
        alone = bytes(file[entry.position : entry.position + entry.size])
        try:
            directory.block(index, alone)
        except PageFileError:
            refused += 1
    assert refused == 1


@given(page=pages(), data=st.data())
def test_a_page_is_not_cut_unseen(page: Page, data: st.DataObject) -> None:
    file = page.file()
    length = data.draw(st.integers(0, len(file) - 1))

    with pytest.raises(PageFileError, match="truncated"):
        decode(file[:length], KEY, LIFE)


@given(before=pages(), after=pages(), data=st.data())
def test_a_page_of_old_and_new_sectors_is_never_taken_for_one(
    before: Page, after: Page, data: st.DataObject
) -> None:
    # Given sectors of another version of the page, or such as were never written
    file = after.file()
    old = before.file(KEY._replace(version=3)).ljust(len(file), b"\0")[: len(file)]
    torn = bytearray(file)
    for at in range(0, len(file), 512):
        match data.draw(st.sampled_from(["new", "old", "zero"])):
            case "old":
                torn[at : at + 512] = old[at : at + 512]
            case "zero":
                torn[at : at + 512] = bytes(len(torn[at : at + 512]))

    # When it is read
    try:
        image = decode(bytes(torn), KEY, LIFE)
    except PageFileError:
        image = None

    # Then it is refused, unless all of it happens to be as it was written
    assert (image is not None) == (bytes(torn) == file)


def truncated(file: bytes) -> bytes:
    return file[:-1]


def headless(file: bytes) -> bytes:
    return file[:50]


def longer(file: bytes) -> bytes:
    return file + b"\0"


def half_zero(file: bytes) -> bytes:
    return file[: len(file) // 2].ljust(len(file), b"\0")


def empty(file: bytes) -> bytes:
    return bytes(len(file))


def flipped(file: bytes) -> bytes:
    return file[:-1] + bytes([file[-1] ^ 1])


def other_directory(file: bytes) -> bytes:
    at = HEADER.size
    return file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]


def foreign(file: bytes) -> bytes:
    return b"\x7fELF" + file[4:]


def newer_format(file: bytes) -> bytes:
    return file[:4] + b"\2\0" + file[6:]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (truncated, "truncated: 18414 of its 18415 bytes"),
        (headless, "truncated: 50 bytes are not even a header"),
        (longer, "1 bytes follow the end"),
        (half_zero, r"torn \(zeros from byte 9216\): block 1 of 3"),
        (empty, "not a page file, or torn: it begins with 00000000"),
        (flipped, "torn or altered: block 2 of 3"),
        (other_directory, "torn or altered: header and directory"),
        (foreign, "not a page file, or torn: it begins with 7f454c46"),
        (newer_format, r"format version 2 is not known here \(known: 1\)"),
    ],
)
def test_the_sentence_says_how_it_shows(spoil: Callable[[bytes], bytes], sentence: str) -> None:
    with pytest.raises(PageFileError, match=sentence):
        decode(spoil(PAGE.file()), KEY, LIFE)


@pytest.mark.parametrize(
    "key",
    [
        KEY._replace(version=5),
        KEY._replace(first=999),
        KEY._replace(book=BOOK._replace(sid=8)),
        KEY._replace(book=BOOK._replace(gen=1)),
        KEY._replace(book=BOOK._replace(part=0)),
        KEY._replace(book=BOOK._replace(copy=1)),
    ],
)
def test_an_intact_file_of_another_page_is_refused(key: PageKey) -> None:
    file = PAGE.file(key)
    assert_gives(decode(file, key, LIFE), PAGE)

    with pytest.raises(PageFileError, match=r"another page: it is .*, and not 7\.1099511627776\.3"):
        decode(file, KEY, LIFE)


def test_an_intact_file_of_another_life_is_refused() -> None:
    file = PAGE.file(life=bytes(16))

    with pytest.raises(PageFileError, match=f"life {bytes(16).hex()} wrote it"):
        decode(file, KEY, LIFE)


def test_nothing_is_copied_to_be_written_or_when_it_was_read() -> None:
    # Given a page in memory
    images = PAGE.blocks

    # When it is encoded, and its file decoded
    buffers = encode(KEY, LIFE, PAGE.end, images)
    file = b"".join(buffers)
    image = decode(file, KEY, LIFE)

    # Then the buffers are the blocks' own, and all batches lie in the bytes of the file
    assert all(any(buffer is block.data for buffer in buffers) for block in images)
    assert all(block.data is file for block in image.blocks)
    assert image.find(1_010)[0].data is file


def test_a_block_that_was_read_can_be_written_into_the_next_version() -> None:
    # Given a page that was read, of which one block is needed no more
    image = decode(PAGE.file(), KEY, LIFE)
    kept = [block.image() for block in image.blocks if block.first != 1_010]

    # When the rest is written again
    key = KEY._replace(version=KEY.version + 1)
    again = decode(b"".join(encode(key, LIFE, image.end, kept)), key, LIFE)

    # Then the rest is there
    rest = [stored for stored in PAGE.stored if stored.first != 1_010]
    assert_gives(again, PAGE._replace(stored=rest))


@pytest.mark.parametrize("offset", [1_004, 1_012, 1_150, 999])
def test_a_message_that_is_not_there_is_not_answered_with_another(offset: int) -> None:
    image = decode(PAGE.file(), KEY, LIFE)

    with pytest.raises(AssertionError):
        image.find(offset)


@pytest.mark.parametrize("offset", [999, 1_200])
def test_no_block_has_a_message_outside_of_the_page(offset: int) -> None:
    file = PAGE.file()
    directory: Directory = decode_directory(file, KEY, LIFE)

    with pytest.raises(AssertionError):
        directory.index_of(offset)


def test_the_bytes_of_a_small_page_do_not_change() -> None:
    # A page file outlives no process, so this may change; but only with `FORMAT`.
    page = page_of(shared(1_000, [1, 2], [3, 0]), lone(1_006, 1, b"alone"), end=1_007)

    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert page.file() == bytes.fromhex("".join(line.partition("#")[0] for line in lines))
    assert (HEADER.size, ENTRY.size) == (92, 28)

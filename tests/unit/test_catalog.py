"""The catalog: declared once, deleted for good, adopted after a loss."""

from __future__ import annotations

import pytest

from broker.core.catalog import Catalog
from broker.core.ops import Adopt, CatalogOp, DeclareQueue, DeleteQueue
from tanist.wire.control import QueueInfo, QueueSettings
from tanist.wire.limits import QUEUE_NAME_BYTES_MAX

PLAIN = QueueSettings()
REFUSING = QueueSettings(when_full="refuse")


def declared(catalog: Catalog, name: str, settings: QueueSettings = PLAIN) -> QueueInfo:
    queue_id = catalog.admit_declare(name, settings, "every", 0)
    assert isinstance(queue_id, int)
    queue = QueueInfo(id=queue_id, name=name, settings=settings)
    assert catalog.apply(DeclareQueue(queue)) == queue
    return queue


def lost_and_begun_again(*adopted: QueueInfo) -> Catalog:
    """A catalog in its second gen."""
    catalog = Catalog(0, 2)
    for queue in adopted:
        catalog.apply(Adopt(queue))
    return catalog


def test_a_declared_queue_is_found_by_its_name_and_its_id() -> None:
    # Given an empty catalog
    catalog = Catalog(0, 1)

    # When a queue is declared
    queue = declared(catalog, "orders")

    # Then both ways lead to it, and its id tells the gen
    assert catalog.by_name("orders") == catalog.by_id(queue.id) == queue
    assert catalog.queues() == [queue]
    assert len(catalog) == 1
    assert queue.id == 1 << 32 | 1


def test_pages_together_are_all_queues_by_name() -> None:
    # Given queues, declared in another order
    catalog = Catalog(0, 1)
    for name in ("d", "ä", "b", "a", "c"):
        declared(catalog, name)

    # When they are asked for page by page
    pages = [catalog.page("", 2), catalog.page("b", 2), catalog.page("d", 2)]

    # Then each page says where the next one begins, and the last one that it is the last
    assert [([queue.name for queue in page], after) for page, after in pages] == [
        (["a", "b"], "b"),
        (["c", "d"], "d"),
        (["ä"], ""),
    ]


def test_a_page_goes_on_where_a_queue_was_that_is_gone() -> None:
    # Given a page that ended with a queue
    catalog = Catalog(0, 1)
    first, second, third = (declared(catalog, name) for name in ("a", "b", "c"))
    assert catalog.page("", 2) == ([first, second], "b")

    # When that queue is deleted
    catalog.apply(DeleteQueue(second.id))

    # Then the next page is the same
    assert catalog.page("b", 2) == ([third], "")


def test_I63_declaring_a_queue_again_finds_it() -> None:
    # Given a queue
    catalog = Catalog(0, 1)
    queue = declared(catalog, "orders", REFUSING)

    # When it is declared once more, alike
    found = catalog.admit_declare("orders", REFUSING, "every", 0)

    # Then it is this one
    assert found == queue


@pytest.mark.parametrize(
    ("settings", "spread"), [(PLAIN, "every"), (REFUSING, "one")], ids=["settings", "spread"]
)
def test_a_queue_is_not_declared_again_otherwise(settings: QueueSettings, spread: str) -> None:
    # Given a queue
    catalog = Catalog(0, 1)
    declared(catalog, "orders", REFUSING)

    # When it is declared with something else
    found = catalog.admit_declare("orders", settings, "one" if spread == "one" else "every", 0)

    # Then that is an error
    assert found == "exists_differently"


def test_the_one_place_of_a_queue_is_where_it_was_declared_first() -> None:
    # Given a queue with all its messages in post office 1
    catalog = Catalog(0, 1)
    queue = QueueInfo(id=1 << 32 | 1, name="orders", spread="one", sid=1)
    catalog.apply(DeclareQueue(queue))

    # When a client of another node declares it, which would have put it into 2
    found = catalog.admit_declare("orders", PLAIN, "one", 2)

    # Then it is found where it is
    assert found == queue


def test_a_deleted_queue_is_gone_and_its_id_never_comes_again() -> None:
    # Given a queue that was deleted
    catalog = Catalog(0, 1)
    first = declared(catalog, "orders")
    deleted = catalog.apply(DeleteQueue(first.id))

    # When one of that name is declared
    second = declared(catalog, "orders")

    # Then it is another queue
    assert deleted == first
    assert second.id != first.id
    assert catalog.was_deleted(first.id)
    assert not catalog.was_deleted(second.id)
    assert catalog.by_id(first.id) is None
    catalog.check()


def test_an_id_that_was_not_given_yet_is_not_called_deleted() -> None:
    # Given a copy that has heard of one queue
    catalog = Catalog(0, 1)
    queue = declared(catalog, "orders")

    # When it is asked for the next one, and for one of another gen
    answers = [catalog.was_deleted(queue.id + 1), catalog.was_deleted(2 << 32 | 1)]

    # Then it does not know
    assert answers == [False, False]


def test_after_a_loss_queues_come_back_with_their_ids() -> None:
    # Given a queue of the gen that was lost
    queue = declared(Catalog(0, 1), "orders")

    # When two owners of its parts have it adopted
    catalog = lost_and_begun_again(queue, queue)

    # Then it is there once, as it was
    assert catalog.queues() == [queue]
    catalog.check()


def test_an_adopted_queue_whose_name_is_taken_gets_its_id_behind_it() -> None:
    # Given a name that was declared again after the loss
    old = declared(Catalog(0, 1), "orders")
    catalog = lost_and_begun_again()
    new = declared(catalog, "orders")

    # When the old queue is adopted
    adopted = catalog.apply(Adopt(old))

    # Then both can be reached
    assert adopted is not None
    assert adopted.name == f"orders~{old.id}"
    assert catalog.by_name(adopted.name) == catalog.by_id(old.id) == adopted
    assert catalog.by_name("orders") == new
    catalog.check()


def test_an_adopted_queue_finds_a_name_even_if_that_is_taken_too() -> None:
    # Given the longest name, and one that somebody chose out of malice
    old = QueueInfo(id=1 << 32 | 1, name="n" * QUEUE_NAME_BYTES_MAX)
    catalog = lost_and_begun_again()
    declared(catalog, old.name)
    suffix = f"~{old.id}"
    declared(catalog, "n" * (QUEUE_NAME_BYTES_MAX - len(suffix)) + suffix)

    # When the old queue is adopted
    adopted = catalog.apply(Adopt(old))

    # Then it has a third one, that is not too long for a client
    assert adopted is not None
    assert adopted.name.endswith(suffix + "~")
    assert len(adopted.name) == QUEUE_NAME_BYTES_MAX
    catalog.check()


def test_the_name_of_an_adopted_queue_is_cut_by_bytes_and_between_characters() -> None:
    # Given a name of letters of two bytes each, as long as it may be, that is taken by now
    old = QueueInfo(id=1 << 32 | 1, name="é" * (QUEUE_NAME_BYTES_MAX // 2))
    catalog = lost_and_begun_again()
    declared(catalog, old.name)

    # When the old queue is adopted
    adopted = catalog.apply(Adopt(old))

    # Then its new name is a whole one, and short enough
    assert adopted is not None
    assert adopted.name.lstrip("é") == f"~{old.id}"
    assert len(adopted.name.encode()) <= QUEUE_NAME_BYTES_MAX
    catalog.check()


def test_an_owner_that_comes_late_does_not_bring_a_deleted_queue_back() -> None:
    # Given a queue that was adopted after a loss, and then deleted
    old = declared(Catalog(0, 1), "orders")
    catalog = lost_and_begun_again(old)
    catalog.apply(DeleteQueue(old.id))

    # When another owner of one of its parts has it adopted
    adopted = catalog.apply(Adopt(old))

    # Then it stays deleted, and that owner can see it
    assert adopted is None
    assert len(catalog) == 0
    assert catalog.was_deleted(old.id)
    catalog.check()


def test_queues_are_listed_by_id() -> None:
    # Given a queue of this gen, and an older one that was adopted later
    old = declared(Catalog(0, 1), "z")
    catalog = lost_and_begun_again()
    new = declared(catalog, "a")
    catalog.apply(Adopt(old))

    # When they are listed
    queues = catalog.queues()

    # Then the order does not depend on who came first
    assert queues == [old, new]


def test_copies_of_the_catalog_have_equal_digests_and_others_do_not() -> None:
    # Given a catalog with queues declared, adopted and deleted
    old = declared(Catalog(0, 1), "old")
    gone = QueueInfo(id=1 << 32 | 9, name="gone")
    ops: list[CatalogOp] = [
        Adopt(old),
        Adopt(gone),
        DeleteQueue(gone.id),
        DeclareQueue(QueueInfo(id=2 << 32 | 1, name="new", settings=REFUSING)),
    ]
    catalog = Catalog(0, 2)
    digests = [catalog.digest()]
    for op in ops:
        catalog.apply(op)
        digests.append(catalog.digest())

    # When a follower applies the same ops from their records
    copy = Catalog(0, 2)
    for op in ops:
        record = b"".join(op.parts())
        copy.apply(copy.decode(op.kind, b"before" + record, 6, 6 + len(record)))

    # Then it is the same, and each step was another state
    assert copy.digest() == catalog.digest()
    assert len(set(digests)) == len(digests)
    copy.check()

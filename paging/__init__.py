"""Parts larger than memory: ranges, pages, and the part that lays them over each other.

A `Part` is the replicated state of one partial queue: batches in their order, and ranges
that say where each message is. `Pages` keeps its bytes, each node in its own way.
"""

from paging.pages import Pages
from paging.part import Answer, Part, Purged
from paging.ranges import Counted, Range, RangeMap, Ranges

__all__ = ["Answer", "Counted", "Pages", "Part", "Purged", "Range", "RangeMap", "Ranges"]

"""Every exception a caller may want to catch.

    Error                            .retryable: the same call may be made again
    ├── ProtocolError                a rule of the wire protocol was broken
    │   ├── LocalProtocolError           by us: fix the calling code
    │   └── RemoteProtocolError          by the peer: drop the connection
    ├── ClosedError                  you closed it, and then used it
    ├── BrokenError                  the network or the peer closed it; see __cause__
    │   └── FailoverTimeout              no owner in time; see .in_doubt
    ├── RefusedError                 the broker said no; the connection is still good
    │   ├── QueueNotFound                declare it first
    │   ├── QueueExistsDifferently       the name is taken, with other settings
    │   └── OverloadedError              slow down; retry after .retry_after_s
    └── ConfigError                  a file or an argument is wrong: mend it as the text says

Catch by the decision you have to make, not by the layer that raised it. That
another node owns a post office is no error here: the client follows by itself.
"""

from __future__ import annotations


class Error(Exception):
    """Root of the tree. `retryable`: the same call, made again, may succeed."""

    retryable = False


class ProtocolError(Error):
    """A rule of the wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This side broke the rule: the calling code needs mending."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the rule: its connection must be dropped.

    Attributes:
        code: The word for it in an ERROR frame, such as `bad_frame` or `limit`.
        value: The value that was wrong, as text.
    """

    def __init__(self, sentence: str, *, code: str = "bad_frame", value: str = "") -> None:
        super().__init__(sentence)
        self.code = code
        self.value = value


class ClosedError(Error):
    """It was closed by you, and then used."""


class BrokenError(Error):
    """The network or the peer closed it."""

    retryable = True


class FailoverTimeout(BrokenError):
    """No owner answered in time.

    Attributes:
        in_doubt: Messages of this call that may have been stored. They keep their
            numbers: `flush` repeats them and has each stored once, where a second
            `send` would be a second message. With none in doubt the call may simply
            be made again.
    """

    def __init__(self, sentence: str, *, in_doubt: int = 0) -> None:
        super().__init__(sentence)
        self.in_doubt = in_doubt
        self.retryable = in_doubt == 0


class RefusedError(Error):
    """The broker said no. The connection is still good.

    Attributes:
        code: The broker's word for it, such as `full` or `fenced`.
    """

    def __init__(self, sentence: str, *, code: str = "refused", retryable: bool = False) -> None:
        super().__init__(sentence)
        self.code = code
        self.retryable = retryable


class QueueNotFound(RefusedError):
    """No queue has this name: declare it first."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue {queue!r}: declare it first", code="not_found")
        self.queue = queue


class QueueExistsDifferently(RefusedError):
    """A queue of this name exists, with other settings."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code="exists_differently")


class OverloadedError(RefusedError):
    """The broker has no room now. Try again after `retry_after_s` seconds."""

    def __init__(self, sentence: str, *, retry_after_s: float) -> None:
        super().__init__(sentence, code="full", retryable=True)
        self.retry_after_s = retry_after_s


class ConfigError(Error):
    """A file or an argument is wrong. The text is for the operator."""

"""A cluster's URL."""

from __future__ import annotations

import pytest

from tanist.errors import ConfigError
from tanist.url import parse_url, split_locator


@pytest.mark.parametrize(
    ("url", "locators"),
    [
        ("tanist://one:1,two:2", ["one:1", "two:2"]),
        ("tanist://one", ["one:7472"]),
        ("tanist://one/", ["one:7472"]),
        ("tanist://one:07,one:7", ["one:7"]),
        ("tanist://[::1]:5,[::1]", ["[::1]:5", "[::1]:7472"]),
    ],
)
def test_a_url_lists_nodes_with_the_default_port_where_none_is_given(
    url: str, locators: list[str]
) -> None:
    assert parse_url(url) == locators


@pytest.mark.parametrize(
    "url",
    [
        "one:1",
        "http://one",
        "tanist://",
        "tanist://a:b",
        "tanist://a:0",
        "tanist://a:70000",
        "tanist://a,,b",
        "tanist://a/b",
        "tanist://::1",
        "tanist://:5",
        "tanist://a:²",
    ],
)
def test_a_bad_url_is_refused_with_its_text(url: str) -> None:
    with pytest.raises(ConfigError, match=r"tanist|is not"):
        parse_url(url)


def test_a_locator_has_the_host_as_sockets_want_it() -> None:
    assert split_locator("[::1]:5") == ("::1", 5)
    assert split_locator("one:7472") == ("one", 7472)

"""Where a cluster is: `tanist://host:port,host:port`."""

from __future__ import annotations

from typing import Final

from tanist.errors import ConfigError

DEFAULT_PORT: Final = 7472
SCHEME: Final = "tanist://"


def parse_url(url: str) -> list[str]:
    """The locators, "host:port", in a cluster's URL. Any one node of the cluster will do.

    Raises `ConfigError`, whose text says what is wrong.
    """
    if not url.startswith(SCHEME):
        raise ConfigError(f"{url!r} does not begin with {SCHEME!r}")
    rest = url[len(SCHEME) :].rstrip("/")
    locators = [parse_locator(piece.strip(), url) for piece in rest.split(",")]
    return list(dict.fromkeys(locators))


def parse_locator(text: str, whole: str) -> str:
    """One "host", "host:port" or "[v6 address]:port", with its port."""
    bare_v6 = text.startswith("[") and text.endswith("]")
    host, colon, port = (text, "", "") if bare_v6 else text.rpartition(":")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if not host or "/" in host or (":" in host and not host.startswith("[")):
        raise ConfigError(f"{whole!r}: {text!r} is not host:port")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{whole!r}: {port!r} is not a port (1 to 65535)")
    return f"{host}:{int(port)}"


def split_locator(locator: str) -> tuple[str, int]:
    """Host and port of a locator."""
    host, _, port = locator.rpartition(":")
    return host.strip("[]"), int(port)

"""The address that the token is sent to: --base-url."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from harvester.bitly.query import BASE_URL
from harvester.errors import UsageError

_VISIBLE = re.compile(r"[!-~]+")


def checked_base_url(url: str) -> str:
    """Return the base URL without slashes at its end, if the token may be sent there: by HTTPS, or to this machine.

    Raises:
        UsageError: it is no URL, has a user name, query or fragment, or would carry the token unencrypted.
    """
    if set(url) & set("@?#"):
        raise UsageError(": it may not have a user name, query or fragment", option="--base-url")
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
        if host and not _is_plain(host):
            host.encode("idna").decode("idna")  # as the request will
    except ValueError:  # an invalid port, address or name
        host = None
    if not host or parts.scheme not in {"http", "https"} or not _VISIBLE.fullmatch(url):
        raise UsageError(f"{url}: must be a URL such as {BASE_URL}", option="--base-url")
    if parts.scheme == "http" and not _is_loopback(host):
        raise UsageError(f"{url}: the token would travel unencrypted; use https", option="--base-url")
    return url.rstrip("/")


def _is_plain(host: str) -> bool:
    """Return whether a host needs no look at its encoding, which takes a millisecond to import."""
    labels = host.split(".")
    plain = all(0 < len(each) < 64 and each.replace("-", "").isalnum() for each in labels)
    return plain and host.isascii() and "xn--" not in host


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

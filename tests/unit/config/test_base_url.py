"""--base-url: the token goes over HTTPS, or stays on this machine."""

import pytest

from harvester.bitly.query import BASE_URL
from harvester.config.base_url import checked_base_url
from harvester.errors import UsageError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (BASE_URL, BASE_URL),
        (BASE_URL + "/", BASE_URL),
        ("HTTPS://api-ssl.bitly.com/v4", "HTTPS://api-ssl.bitly.com/v4"),
        ("https://proxy.example:8443/bitly/v4/", "https://proxy.example:8443/bitly/v4"),
        ("http://localhost:8080/v4", "http://localhost:8080/v4"),
        ("http://LOCALHOST/v4", "http://LOCALHOST/v4"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:8080/v4", "http://[::1]:8080/v4"),
    ],
)
def test_the_token_goes_over_https_or_stays_on_this_machine(url: str, expected: str) -> None:
    assert checked_base_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://api-ssl.bitly.com/v4",
        "http://localhost.example/v4",
        "http://127.0.0.1.example/v4",
        "http://localhost@example.com/v4",
        "http://10.0.0.1/v4",
        "http://0.0.0.0/v4",
        "http://[::2]/v4",
        "http://2130706433/v4",
    ],
)
def test_the_token_never_travels_unencrypted(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        checked_base_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api-ssl.bitly.com/v4",
        "//api-ssl.bitly.com/v4",
        "ftp://api-ssl.bitly.com/v4",
        "file:///etc/passwd",
        "https://",
        "https:///v4",
        "https://host:port/v4",
        "https://host:0/v4",
        "https://host:65536/v4",
        "https://[::1/v4",
        "https://[nonsense]/v4",
        "https://two words.example/v4",
    ],
)
def test_what_is_no_url_is_a_usage_error_that_names_the_option(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        checked_base_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user@example.com/v4",
        "https://user:s3cret@example.com/v4",
        "https://:s3cret@example.com/v4",
        "http://user:s3cret@localhost/v4",
        "https://example.com/v4?access_token=s3cret",
        "https://example.com/v4?",
        "https://example.com/v4#top",
        "https://example.com/v4#",
    ],
)
def test_user_names_queries_and_fragments_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url") as refused:
        checked_base_url(url)
    assert "s3cret" not in str(refused.value)

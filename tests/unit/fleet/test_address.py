"""The URL of a shared budget: what it means, and what is refused without being repeated."""

import re

import pytest

from harvester.errors import UsageError
from harvester.fleet.address import parse_address


@pytest.mark.parametrize(
    ("url", "host", "port", "database", "tls", "username", "shown"),
    [
        ("redis://cache", "cache", 6379, 0, False, "", "redis://cache:6379/0"),
        ("redis://cache:7000/3", "cache", 7000, 3, False, "", "redis://cache:7000/3"),
        ("rediss://app@cache.example/", "cache.example", 6379, 0, True, "app", "rediss://cache.example:6379/0"),
        ("redis://[::1]:6380/1", "::1", 6380, 1, False, "", "redis://[::1]:6380/1"),
    ],
)
def test_an_address_is_parsed_and_shown_without_its_user(
    url: str, host: str, port: int, database: int, tls: bool, username: str, shown: str
) -> None:
    address = parse_address(url, "harvester", "office")
    found = (address.host, address.port, address.database, address.tls, address.username, str(address))
    assert found == (host, port, database, tls, username, shown)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="--budget-password-file") as error:
        parse_address("redis://app:hunter2@cache:6379/0", "harvester", "office")
    assert "hunter2" not in str(error.value)
    assert "app" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["", "cache:6379", "http://cache", "redis://", "redis://cache/x", "redis://cache:port/0", "redis://c/0?db=1"]
)
def test_what_is_no_url_of_redis_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UsageError, match=re.escape("redis://cache.example:6379/0")):
        parse_address(url, "harvester", "office")


@pytest.mark.parametrize(
    ("prefix", "egress", "option"), [("a{b}", "office", "--budget-prefix"), ("harvester", "two words", "--egress")]
)
def test_a_prefix_and_a_name_have_no_characters_that_keys_need(prefix: str, egress: str, option: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_address("redis://cache", prefix, egress)
    assert error.value.option == option

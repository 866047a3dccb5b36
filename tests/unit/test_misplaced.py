"""Tokens that stand where they do not belong."""

import pytest

from harvester.misplaced import MisplacedTokens, looks_like_token

OURS, OTHER = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"


@pytest.mark.parametrize(
    ("text", "alike"),
    [(OURS, True), (OURS.upper(), True), (OURS[1:], False), (f"./{OURS}", False), (OURS + "0", False), ("", False)],
)
def test_what_looks_like_a_token(text: str, alike: bool) -> None:
    assert looks_like_token(text) == alike


def test_a_token_of_the_command_line_is_hidden_wherever_it_stands() -> None:
    tokens = MisplacedTokens()
    tokens.begin(["status", OURS, f"--out={OTHER}"], "")
    assert tokens.hidden(f"/lake/{OURS}/_manifest.json and {OTHER}") == "/lake/[token]/_manifest.json and [token]"
    tokens.begin(["status", "lake"], "")
    assert tokens.hidden(OURS) == OURS


def test_so_is_the_token_in_use_unless_it_may_be_an_ordinary_word() -> None:
    tokens = MisplacedTokens()
    tokens.begin([], "a-token-of-another-kind")
    assert tokens.hidden("x/a-token-of-another-kind") == "x/[token]"
    tokens.begin([], "any")
    assert tokens.hidden("anyone") == "anyone"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"{OURS}: No such file", "[token]: No such file"),
        (f'"{OURS}" (no slash)', '"[token]" (no slash)'),
        (f"/builds/{OURS}/lake is missing", f"/builds/{OURS}/lake is missing"),
        (f"lake/{OURS}.ndjson", f"lake/{OURS}.ndjson"),
        (f"sha256 {OURS}{'0' * 24}", f"sha256 {OURS}{'0' * 24}"),
    ],
    ids=["alone", "quoted", "in a path", "a file", "longer"],
)
def test_a_message_shows_nothing_that_seems_to_be_a_token_but_a_path_with_a_commit(message: str, shown: str) -> None:
    tokens = MisplacedTokens()
    tokens.begin([], "")
    assert tokens.hidden_in_message(message) == shown

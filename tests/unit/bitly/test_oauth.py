"""The answer to the exchange of a code for a token, whatever it is."""

import json
from urllib.parse import urlencode

from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.oauth import parse_token_response
from harvester.errors import UsageError

HIDDEN = ("s3cret-of-the-app", "c0de-of-the-login")
NAMES = st.sampled_from(["access_token", "error", "message", "status_txt", "login"])
VALUES = st.text(max_size=20) | st.sampled_from([*HIDDEN, "invalid_grant", "0123456789abcdef" * 3])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=4)
JSON = st.dictionaries(NAMES, VALUES | st.none() | st.integers() | st.lists(VALUES, max_size=2), max_size=4)

TEXTS = FIELDS.map(urlencode) | JSON.map(json.dumps)


@given(st.sampled_from([200, 302, 400, 500]), st.binary(max_size=60) | TEXTS.map(str.encode))
def test_a_response_of_any_bytes_has_a_token_or_is_an_error_without_a_secret(status: int, body: bytes) -> None:
    message = ""
    try:
        token = parse_token_response(status, body, HIDDEN)
    except UsageError as error:
        message = str(error)
    assert not any(secret in message for secret in HIDDEN)
    assert message or (status == 200 and token.isascii() and token.isprintable())

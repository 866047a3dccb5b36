"""The page that is opened, the redirect that is accepted, and the answer to the exchange, whatever it is."""

import json
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.bitly.oauth import App, ForeignRedirect, Redirect, authorize_url, exchange, parse_token_response
from harvester.errors import UsageError

HERE = "http://127.0.0.1:8734/callback"


@pytest.mark.parametrize(
    ("base_url", "page"),
    [
        ("https://api-ssl.bitly.com/v4", "https://bitly.com/oauth/authorize"),
        ("http://127.0.0.1:8000/v4", "http://127.0.0.1:8000/oauth/authorize"),
    ],
)
def test_the_page_is_bitlys_own_or_the_other_servers(base_url: str, page: str) -> None:
    url = urlsplit(authorize_url(base_url, "my app", HERE, "st&te"))
    assert f"{url.scheme}://{url.netloc}{url.path}" == page
    assert parse_qsl(url.query) == [("client_id", "my app"), ("redirect_uri", HERE), ("state", "st&te")]


def test_the_exchange_goes_to_the_apis_host() -> None:
    url, form = exchange("https://api-ssl.bitly.com/v4", App("me", "s3cret"), "c0de", HERE)
    assert url == "https://api-ssl.bitly.com/oauth/access_token"
    assert form == {"client_id": "me", "client_secret": "s3cret", "code": "c0de", "redirect_uri": HERE}


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("state=other&code=c0de", "another login"),
        ("code=c0de", "another login"),
        ("state=mine&state=mine&code=c0de", "another login"),
        ("state=mine&" + "&".join(f"f{number}=1" for number in range(20)), "cannot be read"),
    ],
)
def test_a_redirect_of_another_login_is_rejected_and_the_login_goes_on(query: str, why: str) -> None:
    redirect = Redirect("mine")
    with pytest.raises(ForeignRedirect, match=why):
        redirect.code_in(query)
    assert redirect.code_in("state=mine&code=c0de") == "c0de"


def test_a_redirect_is_accepted_once() -> None:
    redirect = Redirect("mine")
    assert redirect.code_in("state=mine&code=c0de&" + "&".join(f"f{number}=" for number in range(18))) == "c0de"
    with pytest.raises(ForeignRedirect, match="received before"):
        redirect.code_in("state=mine&code=c0de")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("error=access_denied", r"not granted \(access_denied\)"),
        ("error=", r"not granted \(no reason given\)"),
        ("error=x+y", r"not granted \(no reason given\)"),
        ("code=", "no code in it"),
        ("", "no code in it"),
        ("code=a&code=b", "no code in it"),
        ("code=a+b", "no code in it"),
    ],
)
def test_a_redirect_without_a_code_ends_the_login(query: str, why: str) -> None:
    redirect = Redirect("mine")
    with pytest.raises(UsageError, match=why):
        redirect.code_in(f"state=mine&{query}")
    with pytest.raises(ForeignRedirect):
        redirect.code_in("state=mine&code=c0de")


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"access_token=a&access_token=b", r"refused \(200\)"),
        (200, b"{", r"refused \(200\)"),
        (200, b'{"access_token": 7}', r"refused \(200\)"),
        (400, b"access_token=abc", r"refused \(400\)"),
        (400, b"error=invalid_grant", r"refused \(400 invalid_grant\)"),
        (403, b'{"message": "FORBIDDEN"}', r"refused \(403 FORBIDDEN\)"),
        (500, b"status_txt=UNKNOWN_ERROR", r"refused \(500 UNKNOWN_ERROR\)"),
        (400, b"error=no", r"refused \(400\)"),
        (400, b"error=" + b"x" * 61, r"refused \(400\)"),
        (400, b"error=the_of_the_app", r"refused \(400 the_of_the_app\)"),
        (400, b"error=secret", r"refused \(400\)"),
        (400, b"error=its_secret_code", r"refused \(400\)"),
        (200, b" <html>", r"an HTML page \(200\)"),
    ],
)
def test_an_answer_without_a_token_names_the_status_and_the_error(status: int, body: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_token_response(status, body, ("a-secret-one", "secret_code"))


@pytest.mark.parametrize(
    "body",
    [b"access_token=abc&login=me", b'{"access_token": "abc", "login": null}', b"\naccess_token=abc\n"],
)
def test_a_token_comes_as_a_form_or_as_json(body: bytes) -> None:
    assert parse_token_response(200, body, ()) == "abc"


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

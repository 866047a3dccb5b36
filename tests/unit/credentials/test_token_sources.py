"""What may stand around a token: it is named, with what to do, and neither removed nor sent nor repeated."""

import asyncio
import json
import os
import re
import shlex
import string
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import harvester
from harvester.config.options import AccessOptions
from harvester.credentials import secret_command, secret_text
from harvester.credentials.secret_command import shell_hint
from harvester.credentials.secret_text import checked_secret, secret_in_file
from harvester.credentials.token_sources import token_origin, token_source
from harvester.errors import UsageError
from tests.conftest import Served
from tests.support.commands import harvester as command

TOKEN = "0123456789abcdef0123456789abcdef01234567"
QUOTES, BEARER, NAME = (
    "in quotes: remove",
    "`Bearer ` before it: remove",
    "a name before it: keep only what follows",
)
COMMENT, OBJECT = (
    "a comment after it: remove",
    "JSON object: store its value",
)
ASSIGNMENT, PLACEHOLDER = "an assignment before it: keep only what", "a placeholder that was not filled in"

FLAWED = [
    (f'"{TOKEN}"', QUOTES),
    (f"'{TOKEN}'", QUOTES),
    (f"`{TOKEN}`", QUOTES),
    (f"\u201c{TOKEN}\u201d", QUOTES),
    (f'"{TOKEN}', QUOTES),
    (f"{TOKEN}'", QUOTES),
    (f' "{TOKEN}"\n', QUOTES),
    (f"Bearer {TOKEN}", BEARER),
    (f"bearer\t{TOKEN}", BEARER),
    (f"Authorization: Bearer {TOKEN}", BEARER),
    (f"token {TOKEN}", BEARER),
    (f"Bearer:{TOKEN}", NAME),
    (f"BITLY_TOKEN={TOKEN}", NAME),
    (f"BITLY_TOKEN = {TOKEN}", NAME),
    (f'BITLY_TOKEN="{TOKEN}"', NAME),
    (f"BITLY_TOKEN='Bearer {TOKEN}'", NAME),
    ("BITLY_TOKEN=", NAME),
    (f"bitly_token: {TOKEN}", NAME),
    (f"access_token={TOKEN}&login=me&apiKey=R_1", NAME),
    (f"KEY={TOKEN}", NAME),
    (f"export BITLY_TOKEN={TOKEN}", ASSIGNMENT),
    (f"export BITLY_TOKEN='{TOKEN}'", ASSIGNMENT),
    (f"set BITLY_TOKEN={TOKEN}", ASSIGNMENT),
    (f"{TOKEN} # of the team", COMMENT),
    (f"{TOKEN}#team", COMMENT),
    (f"{TOKEN} // of the team", COMMENT),
    (f"{TOKEN};", COMMENT),
    (json.dumps({"access_token": TOKEN}), OBJECT),
    (json.dumps({"access_token": TOKEN}, indent=2), OBJECT),
    (json.dumps([TOKEN]), OBJECT),
    (json.dumps(TOKEN), QUOTES),
    ("$BITLY_TOKEN", PLACEHOLDER),
    ("${{ secrets.BITLY_TOKEN }}", PLACEHOLDER),
    ("<your token>", PLACEHOLDER),
    (f"\ufeff{TOKEN}", "byte order mark: save it as UTF-8 without"),
    (f"{TOKEN} {TOKEN}", "no spaces or special characters"),
    (f"{TOKEN}\u00b7", "no spaces or special characters"),
]


def silent(message: str) -> None:
    """Nothing to warn of is expected."""
    raise AssertionError(message)


@pytest.fixture(params=["variable", "file", "command", "text", "callable"])
def source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[str, AccessOptions | None]]:
    """Put a text where a token is read from; return the source's name in errors, and the options that name it."""
    monkeypatch.delenv("BITLY_TOKEN", raising=False)
    path = tmp_path / "token"

    def put(text: str) -> tuple[str, AccessOptions | None]:
        match request.param:
            case "variable":
                monkeypatch.setenv("BITLY_TOKEN", text)
                return "BITLY_TOKEN", AccessOptions()
            case "file":
                path.touch(0o600)
                path.write_bytes(text.encode())
                return f"--token-file {path}", AccessOptions(token_file=str(path))
            case "command":
                path.write_bytes(text.encode())
                return "--token-command", AccessOptions(token_command=shlex.join(["cat", str(path)]))
        return "token", None

    return put


@pytest.mark.parametrize(("text", "says"), FLAWED)
def test_what_stands_around_a_token_is_named_with_what_to_do_and_never_repeated(
    source: Callable[[str], tuple[str, AccessOptions | None]], text: str, says: str
) -> None:
    name, options = source(text)
    with pytest.raises(UsageError) as refused:
        token_source(options, silent)() if options else checked_secret(text, name, "token")
    assert str(refused.value).startswith(f"{name}: ")
    assert says in str(refused.value)
    assert not any(TOKEN[at : at + 8] in str(refused.value) for at in range(len(TOKEN) - 8))


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f" {TOKEN}\r\n\n",
        "any",
        "a-b.c_d~e+f/g",
        "cGFkZGVk=",
        "cGFkZGVkMg==",
        "sandbox-secret",
        "Bearer",
        "export1",
    ],
)
def test_any_other_token_is_taken_as_it_is(
    source: Callable[[str], tuple[str, AccessOptions | None]], text: str
) -> None:
    name, options = source(text)
    found = token_source(options, silent)() if options else checked_secret(text, name, "token")
    assert found == text.strip()


def test_a_token_of_letters_and_digits_is_taken_without_compiling_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(re, "match", None)
    assert checked_secret(f" {TOKEN}\n", "BITLY_TOKEN", "token") == TOKEN


@given(st.text(string.ascii_letters + string.digits, min_size=1))
def test_nothing_but_letters_and_digits_has_a_flaw(text: str) -> None:
    assert not any(re.match(pattern, text, re.DOTALL) for pattern, _ in secret_text._FLAWS)


@pytest.mark.parametrize("text", [f"{TOKEN}\nuser: me\nurl: https://bitly.com\n", f"{TOKEN}\r\n\n"])
def test_the_first_line_of_a_file_and_of_what_a_command_prints_is_the_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text(text)
    for options in (AccessOptions(token_file=str(path)), AccessOptions(token_command=f"cat {path}")):
        assert token_source(options, silent)() == TOKEN


@pytest.mark.parametrize("option", ["--token-file", "--client-secret-file"])
def test_a_secret_in_place_of_its_file_is_not_repeated(option: str) -> None:
    with pytest.raises(UsageError) as refused:
        secret_in_file(option, TOKEN, "token", silent)
    assert str(refused.value) == f"{option} must be the path of a file that contains the token"
    assert token_origin(AccessOptions(token_file=TOKEN)) == "--token-file …"


def test_the_path_of_a_missing_file_is_repeated(tmp_path: Path) -> None:
    for path in (str(tmp_path / "token0123456789012345"), "bitly-token-of-the-lake", "token-0123456789012345.txt"):
        with pytest.raises(UsageError, match=re.escape(path)):
            secret_in_file("--token-file", path, "token", silent)


def test_a_token_command_gets_neither_token_nor_client_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLY_TOKEN", "other")
    monkeypatch.setenv("HARVESTER_CLIENT_SECRET", "other")
    code = "import os; print('BITLY_TOKEN' in os.environ, 'HARVESTER_CLIENT_SECRET' in os.environ, sep='-')"
    options = AccessOptions(token_command=shlex.join([sys.executable, "-c", code]))
    assert token_source(options, silent)() == "False-False"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_config_shows_no_secret_that_an_option_may_hold(form: list[str]) -> None:
    done = command("config", *form, "--token-command", "printf %s my-passphrase")
    assert done.returncode == 0
    assert "printf …" in done.stdout
    assert "my-passphrase" not in done.stdout + done.stderr
    done = command("config", *form, "--token-file", TOKEN)
    assert done.returncode == 0
    assert TOKEN not in done.stdout + done.stderr


def test_config_as_toml_leaves_out_the_line_that_cannot_be_used() -> None:
    done = command("config", "--token-command", "printf %s my-passphrase")
    assert '# token_command = "printf …"' in done.stdout
    assert "token_command" not in tomllib.loads(done.stdout)


def test_a_variable_of_several_lines_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLY_TOKEN", f"{TOKEN}\n{TOKEN}")
    with pytest.raises(UsageError, match="more than one line: store it alone"):
        token_source(AccessOptions(), silent)()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_token_in_a_wide_encoding_is_said_to_be_so(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_bytes(f"{TOKEN}\r\n".encode(encoding))
    for options in (AccessOptions(token_file=str(path)), AccessOptions(token_command=f"cat {path}")):
        with pytest.raises(UsageError, match="UTF-16, or is not text: save it as UTF-8"):
            token_source(options, silent)()


def test_a_client_secret_is_checked_alike() -> None:
    with pytest.raises(UsageError, match="the client secret is in quotes"):
        checked_secret('"s3cret"', "HARVESTER_CLIENT_SECRET", "client secret")


@pytest.mark.parametrize("text", [f'"{TOKEN}"', f"Bearer {TOKEN}", f"{TOKEN}\n{TOKEN}"])
@pytest.mark.parametrize(
    "words", [("run", "-", "--out", "out"), ("plan", "links.txt", "--out", "out"), ("show", "bit.ly/a")]
)
def test_no_command_sends_or_prints_it(
    tmp_path: Path, serve: Callable[..., Served], words: tuple[str, ...], text: str
) -> None:
    served = serve()
    (tmp_path / "links.txt").write_text("bit.ly/a\n")
    env = {"BITLY_TOKEN": text}
    done = command(*words, "--base-url", served.url, env=env, stdin=b"bit.ly/a\n", cwd=tmp_path)
    assert done.returncode == 2
    assert "BITLY_TOKEN: the token " in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert not served.sandbox.requests
    assert not served.sandbox.helped
    assert not (tmp_path / "out").exists()


def test_from_python_neither_a_text_nor_a_callable_is_sent(tmp_path: Path, serve: Callable[..., Served]) -> None:
    served = serve()
    for token in (f"Bearer {TOKEN}", lambda: f"Bearer {TOKEN}"):
        with pytest.raises(UsageError, match="has `Bearer ` before it") as refused:
            asyncio.run(harvester.harvest(["bit.ly/a"], out=tmp_path / "out", token=token, base_url=served.url))
        assert TOKEN not in str(refused.value)
    assert not served.sandbox.requests


# --- sources that keep a run waiting ------------------------------------------------------------------------------


def test_a_named_pipe_without_a_writer_is_an_error_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_text, "SOURCE_SECONDS", 0.2)
    monkeypatch.setattr(secret_text, "SILENT_SECONDS", 0.05)
    path, said = tmp_path / "token", list[str]()
    os.mkfifo(path, 0o600)
    with pytest.raises(UsageError, match="nothing was written to this pipe"):
        token_source(AccessOptions(token_file=str(path)), said.append)()
    assert [text.partition(":")[0] for text in said] == ["waiting for the token"]


def test_a_named_pipe_is_read_until_its_writer_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    os.mkfifo(path, 0o600)

    def write() -> None:
        with path.open("w") as pipe:
            for piece in (TOKEN[:7], TOKEN[7:], "\nuser: me\n"):
                pipe.write(piece)
                pipe.flush()
                time.sleep(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    assert token_source(AccessOptions(token_file=str(path)), silent)() == TOKEN
    writer.join()


def test_a_token_command_that_takes_long_is_waited_for_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_command, "SILENT_SECONDS", 0.05)
    said: list[str] = []
    assert token_source(AccessOptions(token_command=f"sh -c 'sleep 1; echo {TOKEN}'"), said.append)() == TOKEN
    assert [text.partition(":")[0] for text in said] == ["waiting for the token"]
    assert TOKEN not in said[0]
    monkeypatch.setattr(secret_command, "SOURCE_SECONDS", 0.2)
    with pytest.raises(UsageError, match="failed"):
        token_source(AccessOptions(token_command="sleep 3600"), said.append)()


def test_a_command_that_would_need_a_shell_is_said_to_run_without_one() -> None:
    options = AccessOptions(token_command="echo $X | cat")
    with pytest.raises(
        UsageError, match=r"is a placeholder .* It runs without a shell, so pipes, variables and ~ are not"
    ):
        token_source(options, lambda _: None)()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["curl", "$URL"], "sh -c"),
        (["notify.sh"], "use ./notify.sh"),
        (["./notify.sh"], ""),
        (["sh", "-c", "curl $URL | cat"], ""),
        (["true", "two words"], ""),
    ],
)
def test_the_hint_names_what_a_shell_would_have_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notify.sh").touch()
    assert hint in shell_hint(words)
    assert bool(hint) == bool(shell_hint(words))

"""The kept token: where it lies, who may read it, which server it is for, and what goes before it."""

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harvester.bearer import fingerprint
from harvester.config.options import AccessOptions
from harvester.credentials import token_store as vaults
from harvester.credentials.token_sources import has_token, token_source
from harvester.credentials.token_store import TokenStore, server_of
from harvester.errors import UsageError
from tests.conftest import Served
from tests.support import keyrings
from tests.support.commands import NO_LIMITS, TOKEN, TOKEN_STORE, harvester

BITLY = "https://api-ssl.bitly.com/v4"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
NONE = {"BITLY_TOKEN": ""}


def silent(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def vault(folder: Path) -> TokenStore:
    return TokenStore(BITLY, str(folder))


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITLY_TOKEN", raising=False)


@pytest.fixture
def ring(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Give the environment of a command whose keyring is one of tests/support/keyrings.py."""
    return lambda kind: {
        **NONE,
        "PYTHON_KEYRING_BACKEND": f"tests.support.keyrings.{kind}",
        keyrings.FILE: str(tmp_path / "keyring.json"),
    }


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_a_kept_token_is_the_users_alone_whatever_the_umask(vault: TokenStore, folder: Path, umask: None) -> None:
    where = vault.keep(TOKEN, "file")
    assert vault.read() == (TOKEN, where)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_the_file_is_what_token_file_takes(vault: TokenStore) -> None:
    path = vault.keep(TOKEN, "file")
    assert token_source(AccessOptions(token_file=path), silent)() == TOKEN


def test_a_second_token_takes_the_place_of_the_first(vault: TokenStore, folder: Path) -> None:
    vault.keep(TOKEN, "file")
    where = vault.keep(OTHER, "file")
    assert vault.read() == (OTHER, where)
    assert len(list(folder.iterdir())) == 1


def test_nothing_is_kept_before_a_login_and_after_a_logout(vault: TokenStore, folder: Path) -> None:
    told: list[str] = []
    assert vault.read() is None
    assert not vault.forget(told.append)
    assert not folder.exists()
    where = vault.keep(TOKEN, "file")
    assert vault.forget(told.append)
    assert told == [f"deleted: {where}"]
    assert vault.read() is None


def test_what_a_killed_login_has_left_is_forgotten_too(vault: TokenStore, folder: Path) -> None:
    vault.keep(TOKEN, "file")
    (folder / ".api-ssl.bitly.com.token-0a1b2c3d").write_text(OTHER)
    assert vault.forget(lambda _: None)
    assert list(folder.iterdir()) == []


def test_a_token_that_cannot_be_written_leaves_the_old_one(
    vault: TokenStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = vault.keep(TOKEN, "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UsageError, match="No space left"):
            vault.keep(OTHER, "file")
    assert vault.read() == (TOKEN, where)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_file_that_others_can_read_or_write_is_refused_with_the_line_that_mends_it(
    vault: TokenStore, folder: Path, mode: int
) -> None:
    path = Path(vault.keep(TOKEN, "file"))
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {path}") as refused:
        vault.read()
    assert TOKEN not in str(refused.value)
    path.chmod(0o600)
    assert vault.read() is not None


def test_a_folder_that_others_can_write_is_refused(vault: TokenStore, folder: Path) -> None:
    vault.keep(TOKEN, "file")
    folder.chmod(0o1777)
    for act in (vault.read, lambda: vault.keep(OTHER, "file")):
        with pytest.raises(UsageError, match=f"chmod 700 {folder}"):
            act()
    folder.chmod(0o755)  # which others may look at: they cannot read the file
    assert vault.read() is not None


def test_a_symbolic_link_is_followed_neither_as_file_nor_as_folder(
    tmp_path: Path, vault: TokenStore, folder: Path
) -> None:
    path = Path(vault.keep(TOKEN, "file"))
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(UsageError, match="symbolic link"):
        vault.read()
    link = tmp_path / "link"
    link.symlink_to(folder)
    for act in (
        TokenStore(BITLY, str(link)).read,
        lambda: TokenStore(BITLY, str(link)).keep(OTHER, "file"),
    ):
        with pytest.raises(UsageError, match="symbolic link"):
            act()
    vault.keep(OTHER, "file")  # instead of the link, not through it
    assert (tmp_path / "moved").read_text() == TOKEN + "\n"


def test_what_belongs_to_another_user_is_refused(
    vault: TokenStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.keep(TOKEN, "file")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        vault.read()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(
    vault: TokenStore, folder: Path, make: Callable[[Path], None]
) -> None:
    folder.mkdir(mode=0o700)
    make(folder / "api-ssl.bitly.com.token")
    with pytest.raises(UsageError, match="is not a file"):
        vault.read()


def test_a_folder_that_cannot_be_entered_holds_nothing_and_is_not_written_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the home folder in some containers; the working directory is not taken instead."""
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    really = os.open

    def shut(path: str, flags: int, *rest: int, **more: int) -> int:
        if path == str(tmp_path / "data" / "tokens"):
            raise PermissionError(13, "Permission denied")
        return really(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", shut)
    assert TokenStore(BITLY).read() is None
    with pytest.raises(UsageError, match="--token-store"):
        TokenStore(BITLY).keep(TOKEN, "file")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    named = TokenStore(BITLY, str(tmp_path / "data" / "tokens"))
    with pytest.raises(UsageError, match="Permission denied"):
        named.read()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    vault = TokenStore(BITLY, str(tmp_path / "file"))
    for act in (vault.read, lambda: vault.choose("file", silent)):
        with pytest.raises(UsageError, match="--token-store"):
            act()


@pytest.mark.parametrize("content", ["", "\n", "two words\n", "\x00\n", "é\n"])
def test_a_file_that_holds_no_token_is_an_error_that_names_it(
    vault: TokenStore, folder: Path, no_token: None, content: str
) -> None:
    path = Path(vault.keep(TOKEN, "file"))
    path.write_text(content)
    with pytest.raises(UsageError, match=f"{path} .made by harvester login.: "):
        token_source(AccessOptions(token_store=str(folder)), silent)()


# --- whose it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "server"),
    [
        (BITLY, "api-ssl.bitly.com"),
        ("https://API-SSL.bitly.com:443", "api-ssl.bitly.com"),
        ("https://api-ssl.bitly.com:8443/v4", "api-ssl.bitly.com:8443"),
        ("http://127.0.0.1:8080/v4", "127.0.0.1:8080"),
        ("http://127.0.0.1/v4", "127.0.0.1:80"),
        ("https://127.0.0.1/v4", "127.0.0.1"),
        ("http://[::1]:8080/v4", "[::1]:8080"),
    ],
)
def test_a_server_is_named_by_host_and_port(url: str, server: str) -> None:
    assert server_of(url) == server


def test_a_token_is_kept_for_its_server_and_given_for_no_other(folder: Path, no_token: None) -> None:
    urls = [
        BITLY,
        "https://eu.example/v4",
        "http://127.0.0.1:8080/v4",
        "http://127.0.0.1:80/v4",
        "https://127.0.0.1/v4",
    ]
    for i, url in enumerate(urls):
        TokenStore(url, str(folder)).keep(f"token-{i}", "file")
    for i, url in enumerate(urls):
        assert token_source(AccessOptions(base_url=url, token_store=str(folder)), silent)() == f"token-{i}"
    with pytest.raises(UsageError, match=r"no token.*harvester login --base-url http://127\.0\.0\.1:8081/v4"):
        token_source(AccessOptions(base_url="http://127.0.0.1:8081/v4", token_store=str(folder)), silent)()


def test_a_server_cannot_be_named_so_that_its_file_lies_elsewhere(tmp_path: Path, folder: Path) -> None:
    for host in ("..", "a%2f..%2fb", ".", "..%2f"):
        TokenStore(f"https://{host}/v4", str(folder)).keep(TOKEN, "file")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# --- the order ------------------------------------------------------------------------------------------------------


def test_what_is_named_goes_before_what_is_kept(
    vault: TokenStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.keep("kept", "file")
    kept = AccessOptions(token_store=str(folder))
    monkeypatch.setenv("BITLY_TOKEN", "from-the-environment")
    assert token_source(kept, silent)() == "from-the-environment"
    monkeypatch.setenv("BITLY_TOKEN", " ")
    assert token_source(kept, silent)() == "kept"
    (tmp_path / "token").write_text("from-the-file")
    (tmp_path / "token").chmod(0o600)
    named = AccessOptions(token_store=str(folder), token_file=str(tmp_path / "token"))
    assert token_source(named, silent)() == "from-the-file"


def test_another_login_is_seen_when_the_token_is_read_again(vault: TokenStore, folder: Path, no_token: None) -> None:
    vault.keep(TOKEN, "file")
    read = token_source(AccessOptions(token_store=str(folder)), silent)
    assert read() == TOKEN
    vault.keep(OTHER, "file")
    assert read() == OTHER


def test_a_kept_token_is_a_token(vault: TokenStore, folder: Path, no_token: None) -> None:
    options = AccessOptions(token_store=str(folder))
    assert not has_token(options)
    vault.keep(TOKEN, "file")
    assert has_token(options)
    assert not has_token(AccessOptions(base_url="http://127.0.0.1:1/v4", token_store=str(folder)))


def test_a_plan_knows_the_kept_token(serve: Callable[..., Served]) -> None:
    served = serve()
    TokenStore(served.url, os.environ[TOKEN_STORE]).keep(TOKEN, "file")
    command = ("plan", "-", "--out", "-", "--json", "--offline", "--base-url", served.url)
    done = harvester(*command, env=NONE, stdin=b"bit.ly/a\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["account"] == fingerprint(TOKEN)


# --- the keyring ----------------------------------------------------------------------------------------------------


def keep(url: str, *options: str, env: dict[str, str], token: str = TOKEN) -> tuple[int, str]:
    done = harvester("login", "--with-token", "--base-url", url, *options, env=env, stdin=token.encode())
    assert TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def harvest(url: str, env: dict[str, str], *options: str) -> tuple[int, str]:
    command = ("run", "-", "--out", "-", "--base-url", url, *NO_LIMITS, *options)
    done = harvester(*command, env=env, stdin=b"bit.ly/a\n")
    assert TOKEN not in done.stdout + done.stderr
    return done.returncode, done.stderr


def test_a_keyring_keeps_a_token_until_it_is_forgotten(
    serve: Callable[..., Served], ring: Callable[[str], dict[str, str]]
) -> None:
    served, env = serve(), ring("Working")
    code, said = keep(served.url, env=env)
    assert (code, "stored in the system keyring" in said) == (0, True), said
    host = server_of(served.url)
    assert json.loads(Path(env[keyrings.FILE]).read_text()) == {f"harvester {host}": TOKEN}
    assert not Path(os.environ[TOKEN_STORE]).exists()
    code, said = harvest(served.url, env)
    assert (code, fingerprint(TOKEN) in said) == (0, True), said
    forgotten = harvester("logout", "--base-url", served.url, env=env)
    assert forgotten.returncode == 0
    assert "deleted: the system keyring" in forgotten.stderr
    assert harvest(served.url, env)[0] == 2


def test_a_keyring_is_not_asked_when_a_token_is_named_or_in_a_file(
    serve: Callable[..., Served], ring: Callable[[str], dict[str, str]]
) -> None:
    served, env = serve(), ring("Working")
    log = Path(env[keyrings.FILE] + ".asked")
    assert harvest(served.url, {**env, "BITLY_TOKEN": TOKEN})[0] == 0
    assert keep(served.url, "--store", "file", env=env)[0] == 0
    assert harvest(served.url, env)[0] == 0
    assert harvester("run", "--help", env=env).returncode == 0
    assert not log.exists()
    assert harvester("logout", "--base-url", served.url, env=env).returncode == 0
    assert harvest(served.url, env)[0] == 2
    assert log.exists()


def test_a_token_in_the_keyring_takes_the_place_of_one_in_a_file(
    serve: Callable[..., Served], ring: Callable[[str], dict[str, str]]
) -> None:
    served, env = serve(), ring("Working")
    assert keep(served.url, "--store", "file", env=env, token=OTHER)[0] == 0
    assert keep(served.url, "--store", "keyring", env=env)[0] == 0
    assert list(Path(os.environ[TOKEN_STORE]).iterdir()) == []


@pytest.mark.parametrize("kind", ["Locked", "Forgetful", "Missing"])
def test_a_keyring_that_fails_is_an_error_that_says_what_to_do(
    serve: Callable[..., Served], ring: Callable[[str], dict[str, str]], kind: str
) -> None:
    served, env = serve(), ring(kind)
    code, said = keep(served.url, env=env)
    assert code == 2
    assert "--store file" in said
    assert keep(served.url, "--store", "file", env=env)[0] == 0
    assert harvest(served.url, env)[0] == 0


def test_a_locked_keyring_ends_a_run_that_has_no_other_token(
    serve: Callable[..., Served], ring: Callable[[str], dict[str, str]]
) -> None:
    for command in (("run", "-", "--out", "-"), ("plan", "-", "--out", "-"), ("logout",)):
        done = harvester(*command, "--base-url", serve().url, env=ring("Locked"), stdin=b"bit.ly/a\n")
        assert done.returncode == 2
        assert "KeyringLocked" in done.stderr
        assert "BITLY_TOKEN" in done.stderr


def test_a_keyring_that_waits_for_a_person_is_not_waited_for_all_night(
    vault: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody_came = threading.Event()

    class Prompting(keyrings.Working):
        def get_password(self, service: str, username: str) -> str | None:
            somebody_came.wait()
            return TOKEN

    monkeypatch.setattr(vaults, "_keyring", Prompting)
    monkeypatch.setattr(vaults, "_KEYRING_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(UsageError, match="TimeoutError"):
        vault.read()
    somebody_came.set()
    monkeypatch.setattr(vaults, "_KEYRING_TIMEOUT_SECONDS", 60.0)
    assert vault.read() == (TOKEN, "the system keyring")


@pytest.mark.parametrize(
    ("backend", "why"), [("fail", "no system keyring is running"), ("null", "the system keyring is switched off")]
)
def test_without_a_keyring_the_file_is_taken_and_that_is_said(
    serve: Callable[..., Served], backend: str, why: str
) -> None:
    served, env = serve(), {**NONE, "PYTHON_KEYRING_BACKEND": f"keyring.backends.{backend}.Keyring"}
    code, said = keep(served.url, env=env)
    assert code == 0
    assert why in said
    assert "is stored in a file" in said
    assert harvest(served.url, env)[0] == 0
    code, said = keep(served.url, "--store", "keyring", env=env)
    assert code == 2
    assert why in said


def test_without_the_extra_its_install_line_is_said(tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "keyring.py").write_text("raise ModuleNotFoundError(\"No module named 'keyring'\", name='keyring')")
    served, env = serve(), {**NONE, "PYTHONPATH": str(tmp_path)}
    assert harvest(served.url, env)[0] == 2
    code, said = keep(served.url, "--store", "keyring", env=env)
    assert code == 2
    assert "pip install 'bitly-harvester[keyring]'" in said
    code, said = keep(served.url, env=env)
    assert code == 0
    assert "pip install 'bitly-harvester[keyring]'" in said
    assert harvest(served.url, env)[0] == 0


def test_another_store_than_the_two_is_refused() -> None:
    code, said = keep(BITLY, "--store", "cloud", env=NONE)
    assert code == 2
    assert "--store cloud: must be one of keyring, file" in said

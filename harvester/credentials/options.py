"""The options of `harvester login` and `harvester logout`."""

from dataclasses import dataclass, field

from harvester.bitly.query import BASE_URL
from harvester.config.options import AUTHENTICATION, PathOptions, StoreName
from harvester.parameters import Parameter


@Parameter(name="*", group=AUTHENTICATION)
@dataclass(frozen=True, kw_only=True)
class TokenStoreOptions(PathOptions):
    """The server whose stored token is meant, and the folder of the store."""

    base_url: str = BASE_URL
    "URL of the API that the token is for: Bitly's, or a sandbox's."

    token_store: str | None = None
    "Folder where tokens are stored in files; by default one in the user's data folder."


@Parameter(name="*", negative="")
@dataclass(frozen=True, kw_only=True)
class LoginOptions(PathOptions):
    """The options of `harvester login`."""

    with_token: bool = False
    "Store a token that you have (Bitly: Settings > API); it is read from standard input, or prompted for."

    client_id: str | None = None
    "Client ID of your OAuth app at Bitly."

    client_secret_file: str | None = None
    "A file whose first line is the app's secret; otherwise it comes from HARVESTER_CLIENT_SECRET, or a prompt."

    port: int = 8472
    "Port of the app's redirect URI, which is http://127.0.0.1:PORT/callback; 0 for a free one."

    no_browser: bool = False
    "Only print the address to open, on any machine; then paste the address where the browser ends."

    store: StoreName | None = None
    "Where to store the token; by default the keyring, if there is one."

    wait: str = "5m"
    "How long to wait for the browser, such as 5m."

    kept: TokenStoreOptions = field(default_factory=TokenStoreOptions)

"""API keys: who may ask, and how much. Only hashes are kept, and a key's own text is never logged.

The keys file is TOML, a table a key:

    [[key]]
    name = "alice"                     # how metrics and logs call it
    sha256 = "2bd806c9..."             # of the key: printf %s "$KEY" | sha256sum
    max_requests_in_flight = 20        # at each gateway; 0 or left out: no limit of its own
    requests_per_minute = 600
    tokens_per_minute = 200000         # prompt and output together
    admin = false
"""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shared.errors import ConfigError

log = logging.getLogger(__name__)

Limit = Annotated[int, Meta(ge=0, le=2**53)]


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key's entry in the file. Limits of 0: none."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")]
    max_requests_in_flight: Limit = 0
    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    admin: bool = False


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: list[ApiKey] = []


ANYBODY = ApiKey(name="anybody", sha256="0" * 64)
"""Who asks where no key is needed."""


class Keys:
    """The keys that are accepted, found by a hash of a hash under a secret of this process: how long the search takes
    tells nothing of any key."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        """No two of the keys have the same hash."""
        self._secret = secrets.token_bytes(32)
        self._keys = {self._blinded(bytes.fromhex(key.sha256)): key for key in keys}
        self._is_needed = any(not key.admin for key in keys)

    def __bool__(self) -> bool:
        """False: nobody needs a key."""
        return self._is_needed

    @property
    def has_admin(self) -> bool:
        return any(key.admin for key in self._keys.values())

    def find(self, text: str) -> ApiKey | None:
        """Whose key this is."""
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        key = self._keys.get(self._blinded(digest))
        if key is None or not hmac.compare_digest(bytes.fromhex(key.sha256), digest):
            return None
        return key

    def _blinded(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")


def load_keys(api_key: str, admin_api_key: str, path: str) -> Keys:
    """The keys of the settings and of the file. Raises ConfigError, which names the file and the place in it, also when
    two of them have the same name or are the same."""
    given = {}
    if api_key:
        given["--api-key"] = _of_setting("--api-key", "default", api_key)
    if admin_api_key:
        admin = _of_setting("--admin-api-key", "admin", admin_api_key)
        given["--admin-api-key"] = msgspec.structs.replace(admin, admin=True)
    if len({key.sha256 for key in given.values()}) < len(given):
        raise ConfigError("--admin-api-key is the same key as --api-key: it would make an admin of every client")
    read = read_file(path) if path else []
    for key in read:
        for flag, other in given.items():
            if key.name.lower() == other.name:
                raise ConfigError(f"{_source(path)}: the name {key.name} is that of the key that {flag} sets")
            if key.sha256.lower() == other.sha256:
                raise ConfigError(f"{_source(path)}: the key {key.name} is also the one that {flag} sets")
    return Keys([*given.values(), *read])


def read_file(path: str) -> list[ApiKey]:
    """The keys in a file. Raises ConfigError."""
    source = _source(path)
    try:
        keys = msgspec.toml.decode(Path(path).read_bytes(), type=_File).key
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: {error}") from None
    for field in ("name", "sha256"):
        values = [getattr(key, field).lower() for key in keys]
        if twice := next((value for value in values if values.count(value) > 1), None):
            shown = twice if field == "name" else "one value"
            raise ConfigError(f"{source}: {shown} is the {field} of two keys")
    if not any(not key.admin for key in keys):
        raise ConfigError(f"{source}: there is no [[key]] in it that is not for admins")
    return keys


def _source(path: str) -> str:
    return f"--api-keys-file {path}"


def _of_setting(flag: str, name: str, text: str) -> ApiKey:
    """Space around a key is not part of it, as it is not in what clients send: a secret's file ends with a newline."""
    text = text.strip()
    if not text:
        raise ConfigError(f"{flag} is nothing but white space")
    return ApiKey(name=name, sha256=hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest())

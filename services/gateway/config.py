"""Settings of the gateway."""

from typing import Annotated, Literal

from msgspec import Meta

from shared.settings import BaseSettings, help_


class Settings(BaseSettings, frozen=True, kw_only=True):
    """HTTP gateway: the OpenAI-compatible API."""

    host: Annotated[str, help_("address to listen on; 0.0.0.0 for every IPv4 interface")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535), help_("port to listen on")] = 30000
    reuse_port: Annotated[bool, help_("let several gateways of this host share the port")] = False
    api_key: Annotated[str, help_("key that clients must send as a bearer token; empty: none")] = ""
    api_keys_file: Annotated[str, help_("TOML file of hashed keys with their limits; read again when it changes")] = ""
    admin_api_key: Annotated[str, help_("key for /v1/admin; empty: only admin keys of the file, or nobody")] = ""
    allowed_origins: Annotated[
        str, help_("origins whose pages may ask from browsers, separated by commas, or *; empty: none")
    ] = ""
    open_probes: Annotated[bool, help_("/health, /ready and /metrics need no key")] = True
    isolate_keys: Annotated[bool, help_("requests share cached prefixes with those of the same key only")] = False
    max_body_bytes: Annotated[int, Meta(ge=1), help_("largest request body, decompressed; above: 413")] = 32 * 2**20
    max_body_bytes_in_flight: Annotated[int, Meta(ge=1), help_("bytes of all bodies being read; above: 429")] = 2**30
    max_requests_in_flight: Annotated[int, Meta(ge=1), help_("requests held at once; above: 429")] = 4096
    max_prompt_tokens_in_flight: Annotated[
        int, Meta(ge=0), help_("tokens of their prompts, about; above: 429; 0: no limit")
    ] = 8 * 2**20
    max_unread_bytes: Annotated[
        int, Meta(ge=0), help_("text that waits for a client that reads slowly; above: it is cut; 0: no limit")
    ] = 8 * 2**20
    resume_grace_s: Annotated[
        float, Meta(ge=1), help_("how long an answer is made on without a reader, if its client may come back")
    ] = 30.0
    resume_keep_s: Annotated[float, Meta(ge=1), help_("how long such an answer is kept once it is complete")] = 600.0
    resume_max_mb: Annotated[int, Meta(ge=1), help_("MiB of complete answers a gateway keeps in the broker")] = 256
    request_timeout_s: Annotated[float, Meta(ge=0), help_("longest time for one request; 0: no limit")] = 0.0
    send_timeout_s: Annotated[float, Meta(ge=0), help_("a client that reads nothing for so long is cut; 0: never")] = (
        120.0
    )
    outage_patience_s: Annotated[
        float, Meta(ge=0), help_("how long requests wait for a part of the system that is gone before they get a 503")
    ] = 30.0
    drain_notice_s: Annotated[
        float,
        Meta(ge=0),
        help_("on stop, how long /ready says no before connections are refused"),
    ] = 0.0
    drain_timeout_s: Annotated[float, Meta(ge=0), help_("on stop, how long running requests may go on")] = 10.0
    grammar_mode: Annotated[
        Literal["auto", "off"], help_("auto: answers match the constraints that requests ask for; off: those get a 400")
    ] = "auto"

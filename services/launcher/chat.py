"""`sapwood chat`: a conversation in the terminal over the OpenAI API, with any server that speaks it."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import aiohttp

from shared.errors import ConfigError

HELP = "/reset starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="the server (default: %(default)s)")
    parser.add_argument("--model", default=None, help="default: the first that the server lists")
    parser.add_argument("--system", default=None, help="system message")
    parser.add_argument("--temperature", type=float, default=None)
    parser.add_argument("--top-p", type=float, default=None)
    parser.add_argument("--max-tokens", type=int, default=None, help="longest answer")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--api-key", default=os.environ.get("SAPWOOD_API_KEY"), help="or SAPWOOD_API_KEY")


@dataclass(slots=True)
class Conversation:
    """Who said what. options: the rest of the request body."""

    model: str
    system: str | None
    options: dict[str, object]
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answered(self, text: str) -> None:
        """Keeps the answer, or what there is of it; a question without any answer is forgotten."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def body(self) -> dict[str, object]:
        return {"model": self.model, "messages": self.messages, "stream": True, **self.options}


class Server:
    """The API at one URL. Raises ConfigError with a line for the person at the terminal."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, body: dict[str, object] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=None, connect=5)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=timeout) as http,
                http.request(method, self.base + path, json=body) as response,
            ):
                if response.status != 200:
                    raise ConfigError(f"the server says {response.status}: {_error_message(await response.text())}")
                yield response
        except aiohttp.InvalidURL:
            raise ConfigError(f"--url {self.base}: not a URL") from None
        except (aiohttp.ClientConnectorError, TimeoutError):
            raise ConfigError(f"no server at {self.base}; start one with: sapwood serve") from None
        except aiohttp.ClientError as error:
            raise ConfigError(f"the connection to {self.base} broke: {error}") from None

    async def first_model(self) -> str:
        async with self._request("GET", "/v1/models") as response:
            try:
                return str((await response.json())["data"][0]["id"])
            except (ValueError, LookupError, TypeError, aiohttp.ContentTypeError):
                raise ConfigError(f"{self.base}/v1/models lists no model") from None

    async def answer(self, conversation: Conversation) -> AsyncGenerator[str, None]:
        """The answer in pieces, as the server streams them."""
        async with self._request("POST", "/v1/chat/completions", conversation.body()) as response:
            async for line in response.content:
                piece = text_of_event(line)
                if piece:
                    yield piece


def text_of_event(line: bytes) -> str:
    """The text that a line of the event stream brings; empty for other lines. Raises ConfigError on an error."""
    if not line.startswith(b"data:"):
        return ""
    data = line[5:].strip()
    if data == b"[DONE]":
        return ""
    try:
        event = json.loads(data)
    except json.JSONDecodeError:
        raise ConfigError(f"the server sent an event that is not JSON: {data[:100]!r}") from None
    if "error" in event:
        raise ConfigError(f"the server says: {_error_message(data.decode())}")
    choices = event.get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


def _error_message(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return " ".join(body.split())[:200]


def run(arguments: argparse.Namespace) -> None:
    """The conversation, until the input ends. Raises ConfigError when there is no server to talk to."""
    server = Server(arguments.url, arguments.api_key)
    names = ("temperature", "top_p", "max_tokens", "seed")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    model = arguments.model or asyncio.run(server.first_model())
    conversation = Conversation(model, arguments.system, options)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() then has line editing
        print(f"{model} at {server.base}. {HELP}.")
    while True:
        try:
            text = input("> " if is_terminal else "").strip()
        except EOFError:
            if is_terminal:
                print()
            return
        except KeyboardInterrupt:
            print(f"\n({HELP})")
            continue
        match text:
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                conversation.reset()
                print("(a new conversation)")
            case "/help":
                print(HELP)
            case _ if text.startswith("/"):
                print(f"(no command {text}; {HELP})")
            case _:
                _exchange(server, conversation, text, is_terminal)


def _exchange(server: Server, conversation: Conversation, question: str, is_terminal: bool) -> None:
    """One question and its answer. On a terminal a failed answer is told and the conversation goes on."""
    conversation.ask(question)
    pieces: list[str] = []
    try:
        asyncio.run(_print_answer(server, conversation, pieces))
        print()
    except KeyboardInterrupt:
        print(" (stopped)")
    except ConfigError as error:
        if not is_terminal:
            raise
        print(f"({error})")
    finally:
        conversation.answered("".join(pieces))


async def _print_answer(server: Server, conversation: Conversation, pieces: list[str]) -> None:
    async with contextlib.aclosing(server.answer(conversation)) as answer:
        async for piece in answer:
            pieces.append(piece)
            print(piece, end="", flush=True)

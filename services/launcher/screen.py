"""What the person at the terminal sees: plain lines, and on a terminal a moving status line while things start."""

from rich.console import Console
from rich.status import Status
from rich.text import Text


class Screen:
    """Standard output for what was asked for, standard error for what went wrong."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._last_progress = ""

    def say(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style=style))

    def notice(self, text: str) -> None:
        """Something about the running system: standard error, so that it mixes with the services' logs."""
        self._err.print(Text(f"sapwood: {text}", style="yellow"))

    def error(self, text: str) -> None:
        """The one line of a failure."""
        self._err.print(Text("sapwood: ", style="bold red").append(Text(" ".join(text.split()), style="default")))

    def log(self, name: str, line: str) -> None:
        self._err.print(Text(f"[{name}] ", style="dim").append(Text(line, style="default")))

    def progress(self, text: str) -> None:
        """Replaces the status line on a terminal; elsewhere a line whenever the text is another."""
        if self._out.is_terminal:
            if self._status is None:
                self._status = self._out.status(text)
                self._status.start()
            self._status.update(Text(text))
        elif text != self._last_progress:
            self.say(text)
        self._last_progress = text

    def end_progress(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

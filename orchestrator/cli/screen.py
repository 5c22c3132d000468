"""Where a session shows itself: a live picture on a terminal, lines anywhere else. Both are left as they were found.

The picture lives on the terminal's second page, so that the first one stays what it was. Next: `live.py`, `plain.py`.
"""

from __future__ import annotations

import os
import sys
import termios
import time
from typing import IO, Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.cli.live import Aside, render
from orchestrator.cli.plain import Narrator, fields
from orchestrator.cli.render import FAINT
from protos import admin_pb2

_LEAST_WIDTH = 40
_LEAST_HEIGHT = 12
_LOCAL_FLAGS = 3
"""Where the local modes are in the list of `tcgetattr`."""


class Screen(Protocol):
    """What a session needs of a place to show itself."""

    def show(self, view: admin_pb2.JobView, aside: Aside) -> None:
        """The job as it is now."""
        ...

    def progress(self, words: str) -> None:
        """What is waited for while there is no view."""
        ...

    def note(self, words: str) -> None:
        """Something that has happened on this side."""
        ...

    def close(self) -> None:
        """Give the terminal back."""
        ...

    @property
    def gone(self) -> bool:
        """Nobody reads any more."""
        ...


def open_screen(console: Console, *, plain: bool) -> Screen:
    """The picture where it can be drawn, else lines."""
    drawable = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    roomy = console.width >= _LEAST_WIDTH and console.height >= _LEAST_HEIGHT
    return LiveScreen(console) if drawable and roomy and not plain else PlainScreen(console)


class LiveScreen:
    """The picture, redrawn when there is something new."""

    def __init__(self, console: Console) -> None:
        self.gone = False
        self._console = console
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._echo = _without_echoed_control(console.file)
        self._live.start()

    def show(self, view: admin_pb2.JobView, aside: Aside) -> None:
        size = self._console.size
        self._draw(render(view, size.width, size.height, aside))

    def progress(self, words: str) -> None:
        self._draw(Text(words, style=FAINT))

    def note(self, words: str) -> None:
        """Notes are part of the picture (`Aside`)."""

    def close(self) -> None:
        try:
            self._live.stop()
            if self._echo is not None:
                termios.tcsetattr(self._console.file.fileno(), termios.TCSANOW, self._echo)
        except (OSError, termios.error):
            self._left()

    def _draw(self, picture: RenderableType) -> None:
        if self.gone:
            return
        try:
            self._live.update(picture, refresh=True)
            if not self._console.is_terminal:
                self._left()  # it was one when it was opened: somebody closed it
        except OSError:
            self._left()

    def _left(self) -> None:
        self.gone = True
        swallow_output()


class PlainScreen:
    """Lines on standard output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._narrator = Narrator()
        self._last_progress = ""
        self.gone = False

    def show(self, view: admin_pb2.JobView, aside: Aside) -> None:
        del aside  # its notes have been told when they were new
        for each in self._narrator.tell(view):
            self._line(each)

    def progress(self, words: str) -> None:
        if words != self._last_progress:
            self._last_progress = words
            self.note(words)

    def note(self, words: str) -> None:
        self._line(f"{time.strftime('%H:%M:%S')} {fields('note', text=words)}")

    def close(self) -> None:
        """Nothing to give back."""

    def _line(self, words: str) -> None:
        if self.gone:
            return
        try:
            self._console.file.write(f"{words}\n")
            self._console.file.flush()
        except OSError:
            self.gone = True
            swallow_output()


def _without_echoed_control(terminal: IO[str]) -> list[Any] | None:
    """Have Ctrl-C not write `^C` into the picture; gives the settings as they were, None when it is no terminal."""
    try:
        before = termios.tcgetattr(terminal.fileno())
        changed = list(before)
        changed[_LOCAL_FLAGS] &= ~termios.ECHOCTL
        termios.tcsetattr(terminal.fileno(), termios.TCSANOW, changed)
    except (termios.error, OSError):
        return None
    return before


def swallow_output() -> None:
    """Whoever read our output has left, or the terminal has: what is still written goes nowhere, also at the exit."""
    out, errors = sys.stdout.fileno(), sys.stderr.fileno()
    same_place = (
        os.fstat(out).st_ino == os.fstat(errors).st_ino and os.fstat(out).st_dev == os.fstat(errors).st_dev
    )
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out)
    if same_place:
        os.dup2(nowhere, errors)
    os.close(nowhere)

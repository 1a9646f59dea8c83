"""Requests to stop: noted at once, obeyed at the end of a step, bounded in time.

    first signal            noted; the run saves and leaves by itself
    an echo of it           nothing: a scheduler signals every process, and launchers pass it on too
    a second one            the process ends at once, nothing more is saved
    the grace is over       likewise

A thread does this, woken by the C handler: while the main thread waits inside a collective, Python
handlers do not run.

The launcher listens too while it prepares the data: there the first request is raised as an error
in the main thread, and the same thread bounds what the error has to wait for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

from launch.local import ECHO, EXIT_CODES, hear_requests
from trainers.errors import StoppedError


class Listener:
    """What this process has been told by signals."""

    def __init__(self) -> None:
        self.grace = 25.0  # seconds from the first signal to the end
        self._signum = 0
        self._since = 0.0
        self._leaving = False
        self._raises = False

    @property
    def signum(self) -> int:
        """The first signal; 0 if there was none."""
        return self._signum

    def listen(self, *, raises: bool = False) -> None:
        """Take over SIGTERM, SIGINT and SIGUSR1 of this process.  In the main thread.

        With `raises` the first of them is also raised there: StoppedError or KeyboardInterrupt.
        """
        self._raises = raises
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in EXIT_CODES:
            signal.signal(signum, self._handle)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        hear_requests()

    def hand_over(self) -> None:
        """Somebody else bounds what happens on a request from now on."""
        signal.set_wakeup_fd(-1)

    def leaving(self) -> None:
        """All is saved: another signal has nothing to add."""
        self._leaving = True

    def _handle(self, signum: int, _: object) -> None:
        if not self._raises or self._leaving:
            return
        self._raises = False
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        found = signal.Signals(signum)
        text = f"{found.name}: stopped before the first step, the same command goes on"
        raise StoppedError(text, EXIT_CODES[found])

    def _watch(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in EXIT_CODES:
                    self._told(number)

    def _told(self, signum: int) -> None:
        now = time.monotonic()
        if not self._signum:
            self._signum, self._since = signum, now
            timer = threading.Timer(self.grace, self._overdue)
            timer.daemon = True
            timer.start()
        elif now - self._since > ECHO and not self._leaving:
            os._exit(128 + signum)

    def _overdue(self) -> None:
        code = EXIT_CODES[signal.Signals(self._signum)]
        name = signal.Signals(self._signum).name
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(
                f"{name}: not done after runtime.grace_seconds={self.grace:g}; the same command "
                "goes on from the last checkpoint\n"
            )
            sys.stderr.flush()
        os._exit(code)


listener = Listener()

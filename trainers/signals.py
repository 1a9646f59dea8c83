"""Requests to stop: noted at once, obeyed at the end of a step, bounded in time.

    first signal            noted; the run saves and leaves by itself
    an echo of it           nothing: a scheduler signals every process, and launchers pass it on too
    a second one            the process ends at once, nothing more is saved
    the grace is over       likewise

A thread does this, woken by the C handler: while the main thread waits inside a collective, Python
handlers do not run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

# 75 is EX_TEMPFAIL, "please requeue"; who presses Ctrl-C expects what a shell says.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
ECHO = 1.0  # seconds within which the same request may arrive more than once


class Listener:
    """What this process has been told by signals."""

    def __init__(self) -> None:
        self.grace = 25.0  # seconds from the first signal to the end
        self._signum = 0
        self._since = 0.0
        self._leaving = False

    @property
    def signum(self) -> int:
        """The first signal; 0 if there was none."""
        return self._signum

    def listen(self) -> None:
        """Take over SIGTERM, SIGINT and SIGUSR1 of this process.  In the main thread."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in EXIT_CODES:
            signal.signal(signum, lambda *_: None)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def leaving(self) -> None:
        """All is saved: another signal has nothing to add."""
        self._leaving = True

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

"""What passes between a run and whoever started it: Ctrl-C, and a line that shows where it is."""
import contextlib
import os
import shutil
import signal
import sys
import threading


class Interrupted(Exception):
    """The user asked the run to end. Its argument is the signal's number."""


class Signals:
    """Ctrl-C and SIGTERM: the first asks the run to end, a second ends the process at once.

    Python runs its signal handlers between two bytecodes, and a training step is one that takes
    seconds. So a thread reads the signals' numbers from the wake-up file, to which they come at once.
    """

    def __init__(self, run):
        self._run = run
        self._received = None

    def start(self):
        """Take the signals over."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
                        if signal.getsignal(number) != signal.SIG_IGN}     # as SIGINT is in a script's background job
        signal.set_wakeup_fd(write)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()

    def stop(self):
        """Give them back."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self):
        """Raise Interrupted if one has come."""
        if self._received:
            raise Interrupted(self._received)

    def _watch(self, read):
        while True:
            number = os.read(read, 1)[0]
            if number in self._before:
                if self._received:
                    os._exit(128 + number)      # every file is whole at any moment
                self._received = number
                with contextlib.suppress(OSError):
                    self._run.say(f'{self._run.program}: ending after this iteration; once more ends it at once')


class LiveLine:
    """A line at the foot of the terminal that overwrites itself; nothing where stderr is no terminal."""

    def __init__(self):
        self._on = sys.stderr.isatty()

    def show(self, text):
        """Overwrite the line with text, cut to the terminal's width."""
        if self._on:
            width = shutil.get_terminal_size().columns - 1
            with contextlib.suppress(OSError):      # the terminal may be gone
                print(f'\r\x1b[K{text[:width]}', end='', file=sys.stderr, flush=True)

    def clear(self):
        """Blank the line, so that something else can be printed."""
        self.show('')

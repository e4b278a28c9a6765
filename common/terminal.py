"""What passes between a run and whoever started it: signals, and a line that shows where the run is."""
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import threading
import time

# Ctrl-C; a job that is ended; a terminal that closes; a cluster's warning that the machine will be taken away.
ENDING = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name)]
SIGHUP = getattr(signal, 'SIGHUP', None)    # Windows has none


class Interrupted(Exception):
    """A signal asks the run to end. Its argument is the signal's number."""


class Signals:
    """The first signal asks the run to end; a second ends the process at once.

    SIGHUP does not count as a second one: where a terminal closes, the kernel sends it, and the shell sends it again.
    Python calls its own handlers between two bytecodes, but a training step is one call that takes
    seconds. So a thread reads the numbers from the wake-up socket, where they arrive at once.
    say: called with `line` when the first signal comes.
    Attributes: received, the number of the first, or None.
    """

    def __init__(self, say, line='ending after this iteration; a second signal ends it at once'):
        self._say, self._line = say, line
        self.received, self._before = None, {}
        self._read = self._write = self._thread = None

    def start(self):
        """Take the signals over. One that is ignored stays so: under `nohup`, or in a script's background."""
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = {number: signal.signal(number, lambda *_: None) for number in ENDING
                        if signal.getsignal(number) != signal.SIG_IGN}
        signal.set_wakeup_fd(self._write.fileno())
        self._thread.start()

    def stop(self):
        """Give them back."""
        signal.set_wakeup_fd(-1)
        self._write.close()         # which ends the thread
        self._thread.join()
        self._read.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self):
        """Raise Interrupted if one has come."""
        if self.received:
            raise Interrupted(self.received)

    def _watch(self):
        while received := self._read.recv(1):
            number = received[0]
            if number in self._before:
                if self.received and number == SIGHUP:
                    continue
                if self.received:
                    die(number)
                self._say(self._line)
                self.received = number


def die(number):
    """End the process by a signal, so that the shell loop that it stands in ends, too."""
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # The default action; signal.signal would refuse to set it on a thread.
    set_handler = ctypes.pythonapi.PyOS_setsig
    set_handler.restype = ctypes.c_void_p
    set_handler(int(number), None)
    os.kill(os.getpid(), number)


def drop_stdout():
    """Where stdout cannot be written any more: send what is left in its buffer nowhere, so that the exit is quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LiveLine:
    """A line at the foot of the terminal that overwrites itself. Where stderr is no terminal, nothing is shown."""

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


class Pace:
    """How long the rest of `total` iterations will take.

    Attributes: done, the iterations so far.
    """

    def __init__(self, total):
        self._total, self._start = total, None
        self.done = 0

    def tick(self):
        """Count an iteration. Returns the seconds that are left, or None after the first, which is slower."""
        self.done += 1
        now = time.monotonic()
        if self.done == 1:
            self._start = now
            return None
        return (now - self._start) / (self.done - 1) * (self._total - self.done)


def counted(number, thing):
    """'1 epoch', '2 epochs'."""
    return f'{number} {thing}' + ('' if number == 1 else 's')


def duration(seconds):
    """A time in words, for a person."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 90 else f'{minutes // 60} h {minutes % 60} min'

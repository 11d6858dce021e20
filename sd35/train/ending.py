"""How a run of several processes ends before its time: with one line, whoever of them was lost."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

LOST = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "tcpstore")
"""What the message of a collective says whose other end is gone."""
MESSAGE = "another process of this run has ended: go on from the last save with --resume"
GRACE = 5.0
"""Seconds that a process which is told to end may take to come back from a collective."""


class LostError(ConnectionError):
    """Another process of a run has ended, and nothing more can be learned together."""


@contextmanager
def joined(command: str) -> Iterator[bool]:
    """Let processes that `torchrun` started part in order at the end; gives whether this is the main one.

    Of errors, the first process that has one raises it; the others, which may have met the same or lost the
    first, leave without a word.

    Args:
        command: by whose name a process that cannot raise tells that another was lost.

    Raises:
        LostError: another of them has ended while this one ran, or all are told to end (SIGTERM).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    try:
        with _listening(command):
            yield os.environ.get("RANK") == "0"
    except Exception as error:
        if not _is_first():
            raise SystemExit(1) from error
        if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in LOST):
            raise LostError(MESSAGE) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _listening(command: str) -> Iterator[None]:
    """Raise `LostError` at SIGTERM, which torchrun sends to the processes that are left when one is lost.

    Python runs its handlers between two of its own operations, and so not while a collective waits for a
    process that is gone. A thread hears of the signal all the same, and after a while ends this process.
    """

    def lost(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise LostError(MESSAGE)

    heard, hearing = socket.socketpair()
    hearing.setblocking(False)
    before = signal.signal(signal.SIGTERM, lost), signal.set_wakeup_fd(hearing.fileno())
    threading.Thread(target=_end, args=(heard, command), daemon=True).start()
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what went wrong is told to the end
        raise
    else:
        signal.signal(signal.SIGTERM, before[0])
    finally:
        signal.set_wakeup_fd(before[1])
        hearing.close()


def _end(heard: socket.socket, command: str) -> None:
    """End this process some seconds after SIGTERM, unless it ends by itself."""
    while number := heard.recv(1):
        if number[0] == signal.SIGTERM:
            time.sleep(GRACE)
            if _is_first():
                print(f"{command}: error: {MESSAGE}", file=sys.stderr, flush=True)
            os._exit(1)


def _is_first() -> bool:
    """Whether no other process has told what went wrong. torchrun's own process keeps the count."""
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=GRACE))
        return store.add("sd35/told", 1) == 1
    except (KeyError, RuntimeError):  # torchrun is gone as well
        return True

"""The roll call of the processes of a run, before jax connects them.

jax aborts with a stack trace where two processes have one number, or expect different
numbers of processes; with other options they give wrong results. So each first tells
process 0 its number and options, at the address of the coordinator, and process 0 tells
all whether these fit.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping

# Seconds between attempts to connect, and for the words of a process that connected.
_RETRY, _WORDS = 0.2, 5


def call_roll(
    port: int, count: int, options: Mapping[str, str], seconds: float
) -> None:
    """Wait, as process 0, for processes 1 to `count` - 1, and tell them the verdict.

    Args:
        port: Port to wait at.
        count: Number of processes.
        options: Options that all must have, by name, each as on a command line.
        seconds: Seconds to wait.

    Raises:
        OSError: The port is in use, or some processes do not come or do not fit.
    """
    end, verdict = time.monotonic() + seconds, ""
    present = {0}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        connections: list[socket.socket] = []
        while not verdict and len(present) < count:
            server.settimeout(max(end - time.monotonic(), 1e-3))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(_WORDS)
                index, theirs = json.loads(connection.makefile().readline())
            except TimeoutError:
                if time.monotonic() >= end:
                    missing = sorted({*range(count)} - present)
                    verdict = f"{_explain_absence(count, seconds)}; missing: {missing}"
                continue
            except (OSError, TypeError, ValueError):  # it is not of a run
                continue
            connections.append(connection)
            differences = [x for x in options if options[x] != theirs.get(x)]
            if differences:
                name = differences[0]
                verdict = (
                    f"process 0 has {options[name]}, process {index} has "
                    f"{theirs.get(name, f'no {name}')}: give all the same"
                )
            elif index in present:
                verdict = f"--process-index {index} was given to two processes"
            present.add(index)
        for connection in connections:
            with contextlib.suppress(OSError):  # it has given up
                connection.sendall(f"{json.dumps(verdict)}\n".encode())
    if verdict:
        raise OSError(verdict)


def answer_roll(
    host: str,
    port: int,
    index: int,
    count: int,
    options: Mapping[str, str],
    seconds: float,
) -> None:
    """Tell process 0 the number and options of this one, and wait for its verdict.

    Raises:
        OSError: There is no answer, or the processes do not fit together.
    """
    end = time.monotonic() + seconds
    while True:
        left = max(end - time.monotonic(), 1e-3)
        try:
            with socket.create_connection((host, port), left) as connection:
                connection.sendall(f"{json.dumps([index, options])}\n".encode())
                answer = connection.makefile(errors="replace").readline()
            break
        except OSError as error:
            if time.monotonic() + _RETRY >= end:
                raise OSError(
                    f"{_explain_absence(count, seconds)}; start each, and check that "
                    f"it reaches this address ({error})"
                ) from error
            time.sleep(_RETRY)
    try:
        verdict = json.loads(answer)
    except ValueError as error:
        raise OSError(
            "no process 0 that waits for others; the run may have all its processes"
        ) from error
    if verdict:
        raise OSError(verdict)


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)


def _explain_absence(count: int, seconds: float) -> str:
    return f"not all {count} processes connected within {seconds} s"

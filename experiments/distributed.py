"""Runs that several processes share, one on each host: options and connection.

Every process gets the same command line except for its number:

    python -m experiments.NAME … --coordinator HOST:PORT --process-count 2 \
        --process-index 0

The first process prints, draws and writes the results. All others keep in --out what
they have done so far, and read checkpoints there.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.harness import Positive, Run, UserError, flag, spell
from experiments.progress import drop_output
from experiments.roll_call import answer_roll, call_roll
from zfnet_jax.files import digest
from zfnet_jax.processes import gather

# Options that may differ between the processes of a run.
_OWN = {"coordinator", "coordinator_timeout", "data_dir", "out", "process_index"}
_OWN |= {"workers"}


@dataclasses.dataclass(kw_only=True)
class DistributedRun(Run):
    """A run that several processes may share.

    Attributes:
        coordinator: Address HOST:PORT of process 0, through which all find each other.
        process_count: Number of processes.
        process_index: Number of this process, from 0.
        coordinator_timeout: Seconds to wait until all processes are connected.
    """

    coordinator: str | None = None
    process_count: Positive = 1
    process_index: int = 0
    coordinator_timeout: Positive = 300

    def __post_init__(self) -> None:
        """Check that the options fit each other."""
        super().__post_init__()
        if not 0 <= self.process_index < self.process_count:
            raise UserError(
                f"--process-index {self.process_index}: give a number from 0 to "
                f"{self.process_count - 1}, as --process-count is {self.process_count}"
            )
        if self.process_count > 1 and self.coordinator is None:
            raise UserError(
                f"--process-count {self.process_count} needs --coordinator HOST:PORT"
            )
        address = re.fullmatch(r".+:(\d+)", self.coordinator or "none:1")
        if address is None or not 0 < int(address[1]) < 2**16:
            raise UserError(
                f"--coordinator {self.coordinator}: give HOST:PORT, a port from 1 to "
                "65535"
            )

    @property
    def is_first(self) -> bool:
        """True for the process that prints, draws and writes."""
        return self.process_index == 0

    def connect(self, options: Mapping[str, Any]) -> None:
        """Connect the processes, which must have the same options.

        Raises:
            OSError: The port is in use, or the processes do not connect in time or do
                not fit together.
        """
        if self.coordinator is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        count, seconds = self.process_count, self.coordinator_timeout
        words = spell_shared(options)
        try:
            if self.is_first:
                call_roll(int(port), count, words, seconds)
            else:
                drop_output(sys.stdout)
                host = host.strip("[]")
                index = self.process_index
                answer_roll(host, int(port), index, count, words, seconds)
        except OSError as error:
            raise OSError(
                f"--coordinator {self.coordinator}: {error.strerror or error}"
            ) from error
        # jax would take SIGTERM for a notice that the process is moved elsewhere.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            self.coordinator,
            count,
            self.process_index,
            cluster_detection_method="deactivate",
        )

    def wait(self) -> None:
        """Wait for the others: jax ends a run soon after one of its processes ends."""
        gather(None)


def spell_shared(options: Mapping[str, Any]) -> dict[str, str]:
    """Write each option that all processes must have in common.

    A file is known by its content, and a folder by its name.
    """

    def name_paths(value: Any) -> Iterator[object]:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str | Path) and (path := Path(item)).is_file():
                yield f"{path.name} (digest {digest(path)[:12]})"
            else:
                yield item.name if isinstance(item, Path) else item

    return {
        name: spell(flag(name), *name_paths(value))
        for name, value in options.items()
        if name not in _OWN
    }

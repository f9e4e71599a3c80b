"""Several processes that train one adapter: who is who, and what they agree on.

launch.py starts them by torchrun, which tells each its number by environment variables. A training
of one process needs no group, and everything here then costs nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process reports and writes: the first one, or the only one."""
    return not is_rank() or os.environ["RANK"] == "0"


def lost_another(error: Exception) -> bool:
    """Whether an error says only that another process of the training has ended."""
    torchs = is_rank() and isinstance(error, RuntimeError)
    return torchs and any(word in str(error) for word in ("gloo", "NCCL", "ProcessGroup"))


@dataclass(frozen=True)
class Ranks:
    """This process among those of its training.

    Attributes:
        rank: its number; the first one, 0, reports and writes.
        processes: how many there are.
    """

    rank: int = 0
    processes: int = 1
    _group: Any = None  # of the CPUs: what is agreed on waits for no GPU

    @classmethod
    def join(cls) -> Ranks:
        """Return this process's place; the first call waits until all have joined."""
        if not is_rank():
            return cls()
        import torch
        import torch.distributed
        from accelerate import PartialState

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        PartialState(cpu=not cuda)  # the group that the trainer uses, too
        group = torch.distributed.new_group(backend="gloo")
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; all have to ask."""
        return self.most(int(flag)) > 0

    def least(self, number: int) -> int:
        """Return the smallest of all processes' numbers; all have to ask."""
        return -self.most(-number)

    def most(self, number: int) -> int:
        """Return the largest of all processes' numbers; all have to ask."""
        if self.processes == 1:
            return number
        import torch
        import torch.distributed

        shared = torch.tensor(number)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(shared)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.most(0)

"""The table of slots and workers: who is in which state, and how many.

Pure; used by the scheduler on the manager's thread.
"""

from __future__ import annotations

from ..errors import InternalError
from .lanes import Lane, Tally
from .model import Slot, Worker, WorkerState

__all__ = ("WorkerTable",)

_NEXT: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset((WorkerState.IDLE, WorkerState.CONDEMNED)),
    WorkerState.IDLE: frozenset((WorkerState.BUSY, WorkerState.CHECKING, WorkerState.CONDEMNED)),
    WorkerState.CHECKING: frozenset((WorkerState.IDLE, WorkerState.CONDEMNED)),
    WorkerState.BUSY: frozenset((WorkerState.IDLE, WorkerState.CONDEMNED)),
    WorkerState.CONDEMNED: frozenset(),
}


class WorkerTable:
    """Slots, the workers in them, and the stack of those that are free.

    Args:
        name: The pool's name, the first part of each worker's id.
        size: Number of slots.
        tally: Counts what stands in the workers' lanes.
    """

    # INVARIANT: a worker is on `idle` iff it is IDLE and in service (I3); used last in first out.
    # INVARIANT: a slot is on `free` iff it has no worker and waits for no back-off.
    # INVARIANT: live workers, condemned ones included, <= size (I5): a worker is made from a free slot only.
    def __init__(self, name: str, size: int, tally: Tally | None = None) -> None:
        self.name = name
        self.size = size
        self._tally = tally
        self.slots = [Slot(index) for index in range(size)]
        self.free: dict[Slot, None] = dict.fromkeys(self.slots)
        self.idle: dict[Worker, None] = {}
        self.retiring: dict[Worker, None] = {}
        self.by_id: dict[str, Worker] = {}
        self.counts = dict.fromkeys(WorkerState, 0)

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def busy(self) -> int:
        return self.counts[WorkerState.BUSY]

    @property
    def starting(self) -> int:
        return self.counts[WorkerState.STARTING]

    @property
    def live(self) -> int:
        """Workers that are not being ended."""
        return len(self.by_id) - self.counts[WorkerState.CONDEMNED]

    @property
    def backing_off(self) -> int:
        """Slots that wait before their next start."""
        return self.size - len(self.by_id) - len(self.free)

    @property
    def all_retiring(self) -> bool:
        """True when every slot's worker retires: no other will come before one of them has gone."""
        return len(self.retiring) == self.size

    @property
    def available(self) -> int:
        return self.counts[WorkerState.IDLE] + self.counts[WorkerState.CHECKING]

    def census(self) -> tuple[int, int, int, int]:
        """Return how many workers there are: all, available, busy, starting."""
        return len(self.by_id), self.available, self.busy, self.starting

    def make(self, slot: Slot, now: float) -> Worker:
        """Put a new incarnation into a free slot."""
        if slot.worker is not None:
            raise InternalError(f"slot {slot.index} already has {slot.worker!r}")
        del self.free[slot]
        slot.incarnation += 1
        worker = Worker(f"{self.name}-{slot.index}-{slot.incarnation}", slot, Lane(self._tally), now)
        slot.worker = worker
        self.by_id[worker.worker_id] = worker
        self.counts[WorkerState.STARTING] += 1
        return worker

    def move(self, worker: Worker, state: WorkerState) -> None:
        """Change a worker's state; the only place where that happens."""
        if state not in _NEXT[worker.state]:
            raise InternalError(f"{worker!r} cannot become {state.value}")
        self.counts[worker.state] -= 1
        self.counts[state] += 1
        worker.state = state
        if state is WorkerState.IDLE and worker.in_service:
            self.idle[worker] = None
        else:
            self.idle.pop(worker, None)

    def remove(self, worker: Worker) -> None:
        """Take out a worker whose process is gone; its slot is not free yet."""
        del self.by_id[worker.worker_id]
        self.counts[worker.state] -= 1
        self.idle.pop(worker, None)
        worker.slot.worker = None

    def release(self, slot: Slot) -> None:
        """Make an empty slot free for the next spawn."""
        if slot.worker is None:
            self.free[slot] = None

    def check(self) -> None:
        """Assert I3 and I5."""
        assert len(self.by_id) <= self.size, "I5"
        for worker in self.by_id.values():
            assert worker.slot.worker is worker, "I5"
            expected = worker.state is WorkerState.IDLE and worker.in_service
            assert (worker in self.idle) == expected, f"I3 {worker!r}"
        for state, number in self.counts.items():
            assert number == sum(worker.state is state for worker in self.by_id.values()), "counts"
        for slot in self.free:
            assert slot.worker is None and slot.timer is None, "I5"

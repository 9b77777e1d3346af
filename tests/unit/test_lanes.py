"""The order of lanes, and what is left behind by what was withdrawn."""

from __future__ import annotations

import gc
import random
import weakref

from snakepit._core.lanes import Lane, Tally
from snakepit._core.model import Request


def request(seq: int, priority: int = 0) -> Request:
    made = Request(None, str(seq), priority=priority)
    made.seq = seq
    return made


def drain(lane: Lane) -> list[int]:
    out = []
    while (found := lane.pop()) is not None:
        out.append(found.seq)
    return out


def test_first_in_first_out() -> None:
    """Requests of one priority come out in the order of acceptance."""
    lane = Lane()

    for seq in (1, 2, 3):
        lane.push(request(seq))

    assert [1, 2, 3] == drain(lane)
    assert 0 == len(lane)


def test_priority_goes_first() -> None:
    """A larger priority comes out sooner, first in first out within."""
    lane = Lane()

    for seq, priority in ((1, 0), (2, 5), (3, -1), (4, 5), (5, 0)):
        lane.push(request(seq, priority))

    assert [2, 4, 1, 5, 3] == drain(lane)


def test_put_back_takes_its_place() -> None:
    """A request that is put back stands where it stood."""
    lane = Lane()
    first = request(1)
    lane.push(first)
    lane.push(request(2))

    assert first is lane.pop()
    lane.push(first)

    assert [1, 2] == drain(lane)


def test_steps_stand_before_their_request() -> None:
    """Entries of one request are ordered by their sub-place."""
    lane = Lane()
    step, user = request(4), request(4)

    lane.push(user)
    lane.push(step, -1)

    assert step is lane.pop()
    assert user is lane.pop()
    assert lane.pop() is None


def test_withdrawn_is_skipped_and_forgotten() -> None:
    """A withdrawn request counts no more, is never returned, and is kept alive by nobody."""
    lane = Lane()
    kept, gone = request(2), request(1)
    lane.push(gone)
    lane.push(kept)
    lane.push(request(3, priority=1))

    lane.withdraw(gone)

    assert 2 == len(lane)
    assert gone.entry is None
    assert [3, 2] == [r.seq for r in lane.requests()]
    entry = lane.peek()
    assert entry is not None
    assert 3 == entry[4].seq
    assert [3, 2] == drain(lane)


def test_withdrawn_request_can_be_collected() -> None:
    """The entry that a withdrawn request leaves behind does not hold its arguments."""

    class Payload:
        pass

    lane = Lane()
    payload = Payload()
    ref = weakref.ref(payload)
    made = Request(payload, "big")
    lane.push(made)

    lane.withdraw(made)
    del made, payload
    gc.collect()

    assert ref() is None


def test_100_000_withdrawals_leave_nothing() -> None:
    """Bookkeeping of withdrawn requests does not grow."""
    lane = Lane()
    requests = [request(seq, priority=seq % 3) for seq in range(100_000)]
    for made in requests:
        lane.push(made)

    for made in requests:
        lane.withdraw(made)

    assert 0 == len(lane)
    assert lane.peek() is None
    assert len(lane._run) + len(lane._heap) == 0


def test_lanes_share_a_tally() -> None:
    """A tally counts what stands in all of its lanes."""
    tally = Tally()
    one, two = Lane(tally), Lane(tally)
    made = request(1)

    one.push(made)
    one.push(request(2))
    two.push(request(3))
    assert 3 == tally.count

    one.withdraw(made)
    two.pop()
    assert 1 == tally.count


def test_random_operations_agree_with_a_sorted_list() -> None:
    """Push, pop and withdraw in random order give what sorting gives."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    lane = Lane()
    model: list[Request] = []
    for seq in range(3000):
        choice = rng.random()
        if choice < 0.5 or not model:
            made = request(seq, rng.choice((0, 0, 0, 1, -1)))
            lane.push(made)
            model.append(made)
        elif choice < 0.75:
            model.sort(key=lambda r: (r.rank, r.seq))
            assert model.pop(0) is lane.pop()
        else:
            lane.withdraw(model.pop(rng.randrange(len(model))))
        assert len(model) == len(lane)
    model.sort(key=lambda r: (r.rank, r.seq))

    assert model == lane.requests()

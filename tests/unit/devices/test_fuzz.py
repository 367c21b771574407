"""Whatever a guest does to a device, it gets as many bytes as it asked for and nothing raises: 20,000 accesses each.

And a device that is built from the state of another, in the middle of all that, answers as the other one would have.
"""

from __future__ import annotations

import _thread
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.device_cases import CASES, Rig

from vmservice.devices.bus import Bus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.bus import Device

EXAMPLES = 20
ACCESSES_EACH = 1000
ROUNDS_AFTER = 3000

# How many different answers the guest gets at least, and how often the outside is told of something: a device that answers
# zeros and does nothing would else pass.
ANSWERS_MIN = {"i8042": 20, "power": 5, "pvpanic": 5, "events": 10}
SILENT = {"rtc"}


def access(device: Device | Bus, rng: random.Random, offset: int, size: int) -> bytes:
    """One read or write; what was read, if it was a read."""
    if rng.random() < 0.5:
        data = device.read(offset, size)
        assert len(data) == size
        return data
    # Few values are of use in most registers, and they are small.
    value = rng.choice((rng.randrange(64), 0x34, 0xFE, rng.getrandbits(8 * size)))
    device.write(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
    return b""


def anywhere(rng: random.Random, span: int) -> tuple[int, int]:
    """Offset and size. Half of them are at the first few registers, else a long range would hardly be met."""
    return rng.randrange(min(span, 0x20) if rng.random() < 0.5 else span), rng.choice((1, 1, 2, 3, 4, 8))


def play(rig: Rig, rng: random.Random, span: int, accesses: int) -> list[bytes]:
    """Accesses and pokes; the answers."""
    answers = []
    for _ in range(accesses):
        offset, size = rng.choice(rig.registers) if rng.random() < 0.5 else anywhere(rng, span)
        answers.append(access(rig.device, rng, offset, size))
        if rng.random() < 0.05:
            rig.poke(rng)
    return answers


@pytest.mark.parametrize("name", CASES)
def test_random_accesses_raise_nothing(name: str) -> None:
    length, make, _ = CASES[name]
    answers, said = set(), []
    for seed in range(EXAMPLES):
        rig = make()
        rig.start()
        answers |= set(play(rig, random.Random(seed), length + 4, ACCESSES_EACH))
        said += rig.said
    assert len(answers) >= ANSWERS_MIN.get(name, 30)
    assert said or name in SILENT


@pytest.mark.parametrize("name", CASES)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_a_device_built_from_a_state_goes_on_like_the_first(name: str, seed: int) -> None:
    length, make, state_class = CASES[name]
    first, rng = make(), random.Random(seed)
    first.start()
    play(first, rng, length + 4, rng.randrange(ACCESSES_EACH))
    state = first.collect()
    values = json.loads(json.dumps(state.values()))
    second = make(state_class.from_values(values))
    assert second.said == []  # what is outside has a state of its own
    assert second.line.level == first.line.level
    assert second.collect() == state
    second.timers.time = first.timers.time
    first.said.clear()
    for rig in (first, second):
        rig.start()
    one, other = random.Random(seed), random.Random(seed)
    assert play(first, one, length + 4, ROUNDS_AFTER) == play(second, other, length + 4, ROUNDS_AFTER)
    assert first.said == second.said
    assert first.collect() == second.collect()


def test_random_accesses_to_a_bus_of_all_devices_raise_nothing() -> None:
    played = [play_on_a_bus(random.Random(seed)) for seed in range(EXAMPLES)]
    assert len(set().union(*(answers for answers, _ in played))) > 50
    assert max(talkers for _, talkers in played) >= 4


def play_on_a_bus(rng: random.Random) -> tuple[set[bytes], int]:
    """The answers, and how many devices told the outside something."""
    bus, base, lock = Bus(), 2, _thread.allocate_lock()
    rigs: list[Rig] = []
    registers: list[tuple[int, int]] = []
    for length, make, _ in CASES.values():
        rig = make()
        rig.start()
        bus.insert(base, length, rig.device, lock)
        rigs.append(rig)
        registers += [(base + offset, size) for offset, size in rig.registers]
        base += length + rng.randrange(3)
    answers = set()
    for _ in range(ACCESSES_EACH):
        answers.add(access(bus, rng, *(rng.choice(registers) if rng.random() < 0.5 else anywhere(rng, base + 8))))
        if rng.random() < 0.05:
            rng.choice(rigs).poke(rng)
    return answers, sum(bool(rig.said) for rig in rigs)

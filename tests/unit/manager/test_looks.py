"""Looks: few at a time, one more for what is wanted meanwhile, and later again what has failed."""

from __future__ import annotations

import asyncio

import pytest

from vmservice.manager import looks
from vmservice.manager.looks import Looks

TIMEOUT_SEC = 10.0


def no_log(text: str) -> None:
    raise AssertionError(text)


def test_few_at_a_time_and_all_in_the_end() -> None:
    seen: list[str] = []
    most = 0

    async def check() -> None:
        at_once = 0

        async def look(names: list[str]) -> set[str]:
            nonlocal at_once, most
            at_once += len(names)
            most = max(most, at_once)
            await asyncio.sleep(0)
            at_once -= len(names)
            seen.extend(names)
            return set()

        tried = Looks(look, most=3, names_a_look=2, log=no_log)
        tried.want(*map(str, range(50)))
        await tried.settled(TIMEOUT_SEC)
        await tried.close()

    asyncio.run(check())
    assert (sorted(seen, key=int), most) == ([str(number) for number in range(50)], 6)


def test_what_is_wanted_while_it_is_looked_at_is_looked_at_once_more() -> None:
    count = 0

    async def check() -> None:
        async def look(names: list[str]) -> set[str]:
            nonlocal count
            count += 1
            if count == 1:
                tried.want("a")
                tried.want("a")
            return set()

        tried = Looks(look, most=5, names_a_look=1, log=no_log)
        tried.want("a")
        await tried.settled(TIMEOUT_SEC)
        await tried.close()

    asyncio.run(check())
    assert count == 2


def test_what_fails_is_tried_again_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "FIRST_RETRY_SEC", 0.001)
    monkeypatch.setattr(looks, "LAST_RETRY_SEC", 0.001)

    async def check() -> None:
        count = {"a": 0, "b": 0}
        news = asyncio.Event()

        async def look(names: list[str]) -> set[str]:
            for name in names:
                count[name] += 1
            news.set()
            return set(names)

        tried = Looks(look, most=1, names_a_look=1, log=no_log)
        tried.want("a", "b")
        async with asyncio.timeout(TIMEOUT_SEC):
            while count["a"] < 4:
                news.clear()
                await news.wait()
        tried.forget("a")
        known = count["a"]
        async with asyncio.timeout(TIMEOUT_SEC):
            while count["b"] < 8:
                news.clear()
                await news.wait()
        assert count["a"] <= known + 1  # one may have been under way
        await tried.close()

    asyncio.run(check())


def test_a_bug_is_told_and_costs_one_look() -> None:
    said: list[str] = []

    async def check() -> None:
        async def look(names: list[str]) -> set[str]:
            if names == ["a"]:
                raise ZeroDivisionError
            return set()

        tried = Looks(look, most=1, names_a_look=1, log=said.append)
        tried.want("a", "b")
        await tried.settled(TIMEOUT_SEC)
        await tried.close()

    asyncio.run(check())
    assert len(said) == 1
    assert said[0].endswith("ZeroDivisionError")


def test_one_that_lasts_is_not_waited_for() -> None:
    async def check() -> None:
        async def look(_names: list[str]) -> set[str]:
            await asyncio.Event().wait()
            return set()

        tried = Looks(look, most=1, names_a_look=1, log=no_log)
        tried.want("a")
        await tried.settled(0.01)
        await tried.close()
        tried.want("b")
        await tried.settled(TIMEOUT_SEC)

    asyncio.run(check())

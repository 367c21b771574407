"""Runs beside what is measured: how figures are taken in turn and told, each at once, as a line of JSON on standard output.

{"row", "side", "figure"}     a figure of one run; side is "vmservice" or "peer"
{"failed", "why", "trace"}    a row or a subject that cannot be measured; what there is of its figures has been told

Standard library only.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Mapping

# Row → side → a run, which gives one figure.
Rows = Mapping[str, Mapping[str, Callable[[], float]]]
# What is measured together; it is given the number of runs.
Subjects = Mapping[str, Callable[[int], None]]


class BenchError(Exception):
    """A machine did not do what it is measured by."""


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def note(row: str, side: str, figure: float) -> None:
    tell(row=row, side=side, figure=figure)


def fail(what: str, error: Exception) -> None:
    tell(failed=what, why=f"{type(error).__name__}: {error}", trace="".join(traceback.format_exception(error)))


def in_turn(rows: Rows, runs: int) -> None:
    """Each row's sides one after the other, `runs` times. A row that fails costs only itself. The first run of each side, which
    reads from the disk, is not counted."""
    for name, sides in rows.items():
        try:
            for measure in sides.values():
                measure()
            for _ in range(runs):
                for side, measure in sides.items():
                    note(name, side, measure())
        except Exception as error:  # whatever it is, the next row may do without
            fail(name, error)


def run_subjects(subjects: Subjects, runs: int, chosen: Iterable[str]) -> None:
    for name in chosen or subjects:
        try:
            subjects[name](runs)
        except Exception as error:
            fail(name, error)

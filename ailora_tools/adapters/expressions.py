"""The regular expressions of a stranger's adapter_config.json, in time that grows with their length alone.

Python's matcher goes back and tries again, up to exponentially often: `(([a-z]+)*)*X` never ends. Here all ways through
an expression are followed at once (Thompson, CACM 11, 1968), so a name of n letters takes n steps. What that cannot do,
such as references back, is refused; names of modules need none of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from ..checkpoint.header import quoted
from ..errors import TargetError

_LONGEST = 1_000  # letters of an expression
_STATES = 1_000  # of the machine for it
_REMEMBERED = 10_000  # of its steps
_MOST = 64  # expressions of one adapter that are more than names
_SIMPLE = re.compile(r"(?:[\w.-]|\\\.)*")
_HINT = "Write whole module names, or expressions without references and look-around."


def ends_in(expression: str, module: str) -> bool:
    """PEFT's rule for keys of rank_pattern and alpha_pattern: `re.match(rf"(.*\\.)?({expression})$", module)`.

    TargetError for an expression that is none, or that cannot be matched in bounded time.
    """
    if _SIMPLE.fullmatch(expression):  # of fixed length: nothing to try again
        return _fixed(expression).search(module) is not None
    return _machine(expression, r"(.*\.)?(%s)").matches(module)


def require_matchable(expressions: Iterable[str]) -> None:
    """TargetError if one of them cannot be matched, or too many are more than names."""
    hard = [expression for expression in expressions if not _SIMPLE.fullmatch(expression)]
    if len(hard) > _MOST:
        raise TargetError(f"{len(hard)} expressions, more than {_MOST}.", _HINT)
    for expression in hard:
        ends_in(expression, "")


def covers(expression: str, module: str) -> bool:
    """PEFT's rule for target_modules and exclude_modules that are text: `re.fullmatch(expression, module)`.

    TargetError as in `ends_in`.
    """
    return _machine(expression, "%s").matches(module)


@lru_cache(maxsize=1 << 16)
def _fixed(expression: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\.){expression}$")


@lru_cache(maxsize=256)
def _machine(expression: str, frame: str) -> _Machine:
    try:
        if len(expression) > _LONGEST:
            raise ValueError(f"longer than {_LONGEST} letters")
        return _Machine(_parser.parse(frame % expression))
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise TargetError(f"the expression {quoted(expression)} cannot be matched: {error}.", _HINT) from None


class _Machine:
    """States with a test of one letter, or without one; each leads to others. State 0 is the end."""

    def __init__(self, parsed: Sequence[tuple[Any, Any]]) -> None:
        self._tests: list[tuple[str, Any] | None] = [None]
        self._next: list[list[int]] = [[]]
        self._steps = 0
        self._known: dict[tuple[frozenset[int], str, bool], frozenset[int]] = {}
        self._start = self._sequence(parsed, 0)

    def matches(self, text: str) -> bool:
        """Whether the whole text is in the language of the expression."""
        here = self._reached([self._start], first=True, last=not text)
        for at, letter in enumerate(text, 1):
            here = self._after(here, letter, at == len(text))
        return 0 in here

    def _after(self, here: frozenset[int], letter: str, last: bool) -> frozenset[int]:
        """The states behind a letter, remembered: names of modules are much alike."""
        known = self._known.get((here, letter, last))
        if known is None:
            after = (then for state in here if _fits(self._tests[state], letter) for then in self._next[state])
            known = self._reached(after, first=False, last=last)
            if len(self._known) < _REMEMBERED:
                self._known[here, letter, last] = known
        return known

    def _reached(self, states: Iterable[int], *, first: bool, last: bool) -> frozenset[int]:
        """These states, and all that lie behind those without a test; `first` and `last`: where in the text."""
        free = [None, *([("AT", "AT_BEGINNING")] if first else []), *([("AT", "AT_END")] if last else [])]
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state not in found:
                found.add(state)
                if self._tests[state] in free:
                    waiting += self._next[state]
        return frozenset(found)

    def _add(self, test: tuple[str, Any] | None, after: list[int]) -> int:
        self._tests.append(test)
        self._next.append(after)
        return len(self._next) - 1

    def _sequence(self, items: Sequence[tuple[Any, Any]], after: int) -> int:
        """The state that begins `items`, which end in the state `after`."""
        self._steps += 1 + len(items)
        if self._steps > _STATES:
            raise ValueError("too many repetitions")
        for kind, argument in reversed(items):
            after = self._item(str(kind), argument, after)
        return after

    def _item(self, kind: str, argument: Any, after: int) -> int:
        match kind:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._add((kind, argument), [after])
            case "AT" if str(argument) in ("AT_BEGINNING", "AT_END"):
                return self._add((kind, str(argument)), [after])
            case "BRANCH":
                return self._add(None, [self._sequence(way, after) for way in argument[1]])
            case "SUBPATTERN" if not argument[1] and not argument[2]:  # flags of its own
                return self._sequence(argument[3], after)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, items = argument
                return self._repeated(least, most, items, after)
        raise ValueError(f"{kind.lower().replace('_', ' ')} is not supported")

    def _repeated(self, least: int, most: int, items: Sequence[tuple[Any, Any]], after: int) -> int:
        if most == _parser.MAXREPEAT:
            again = self._add(None, [after])
            self._next[again].append(self._sequence(items, again))
            after = again
        else:
            for _ in range(most - least):
                after = self._add(None, [after, self._sequence(items, after)])
        for _ in range(least):
            after = self._sequence(items, after)
        return after


def _fits(test: tuple[str, Any] | None, letter: str) -> bool:
    """Whether a letter passes the test of a state."""
    match test:
        case ("LITERAL", code):
            return bool(ord(letter) == code)
        case ("NOT_LITERAL", code):
            return bool(ord(letter) != code)
        case ("ANY", _):
            return letter != "\n"
        case ("IN", items):
            inverted = str(items[0][0]) == "NEGATE"
            return inverted != any(_among(str(kind), argument, letter) for kind, argument in items)
    return False


def _among(kind: str, argument: Any, letter: str) -> bool:
    """Whether a letter is in one item of a class such as [a-z_\\d]."""
    match kind:
        case "LITERAL":
            return bool(ord(letter) == argument)
        case "RANGE":
            return bool(argument[0] <= ord(letter) <= argument[1])
        case "CATEGORY":
            return re.match(_CATEGORIES[str(argument)], letter) is not None
    return False  # NEGATE, which the caller has seen


_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W",
}  # fmt: skip

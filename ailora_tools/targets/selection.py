"""Which projections a user asks for: the four options that `inspect`, `analyze` and `init` share."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError


@dataclass(frozen=True)
class Selection:
    """`roles` (of `methods.ROLES`, or names of modules); `layers`, a list such as "0-3,8"; `q_tensor` and `v_tensor`,
    tensor names with `{layer}` that replace what the table of architectures says; `unbuilt`, modules that the class
    lacks, as it said itself when it was asked."""

    roles: tuple[str, ...] = ("q", "v")
    layers: str | None = None
    q_tensor: str | None = None
    v_tensor: str | None = None
    unbuilt: tuple[str, ...] = ()

    @property
    def templates(self) -> dict[str, str]:
        """The names given by hand, by role."""
        named = {"q": self.q_tensor, "v": self.v_tensor}
        return {role: text for role, text in named.items() if text and role in self.roles}


def parse_layers(text: str) -> frozenset[int]:
    """ "0-3,8" -> {0, 1, 2, 3, 8}; OptionError if it is not such a list."""
    return parse_numbers(text, "--layers")


def parse_numbers(text: str, option: str) -> frozenset[int]:
    """The same for any option."""
    numbers: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        plain = low.isdecimal() and (high.isdecimal() or not dash) and len(low + high) < 40  # int() has a limit
        if not plain or (dash and int(high) < int(low)):
            raise OptionError(f"{option} {text!r}: {part.strip()!r} is neither a number nor a range.", "Such as 0-3,8.")
        if dash and int(high) - int(low) > 100_000:
            raise OptionError(f"{option} {text!r}: the range {part.strip()!r} is too long.", "Such as 0-3,8.")
        numbers.update(range(int(low), int(high or low) + 1))
    return frozenset(numbers)

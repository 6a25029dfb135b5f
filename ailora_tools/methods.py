"""The methods, one row each: which part of W starts the adapter, by role, and whether the base gives it up.

Only names live here, so that the command line can list them without importing torch; `decompose.RULES`
holds the functions behind them. A new method is one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import OptionError

ROLES = ("q", "k", "v", "o")


@dataclass(frozen=True)
class Method:
    """`rules` maps a role to the part of W that its adapter starts from."""

    name: str
    rules: Mapping[str, str]
    residual: bool
    paper: str
    summary: str


def _all_roles(rule: str) -> dict[str, str]:
    return dict.fromkeys(ROLES, rule)


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            "ailora", {"q": "principal", "v": "minor"}, True, "AILoRA, arXiv 2510.08034",
            "principal components of W^Q, minor components of W^V",
        ),
        Method(
            "pissa", _all_roles("principal"), True, "PiSSA, arXiv 2404.02948",
            "principal components of every matrix",
        ),
        Method(
            "milora", _all_roles("minor"), True, "MiLoRA, arXiv 2406.09044",
            "minor components of every matrix",
        ),
        Method(
            "lora", _all_roles("kaiming"), False, "LoRA, arXiv 2106.09685",
            "random A, zero B, base untouched: the control",
        ),
    )
}  # fmt: skip


def find_method(name: str, roles: tuple[str, ...]) -> Method:
    """The row of that name; OptionError if there is none or it has no rule for one of the roles."""
    method = METHODS.get(name)
    if method is None:
        raise OptionError(f"There is no method {name!r}.", f"Methods: {', '.join(METHODS)}.")
    lacking = [role for role in roles if role not in method.rules]
    if lacking:
        raise OptionError(
            f"Method {name!r} says nothing about role {', '.join(lacking)}: it covers {', '.join(method.rules)}.",
            "Leave --roles at its default, or choose a method that covers them (pissa, milora, lora).",
        )
    return method

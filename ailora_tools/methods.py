"""The methods, one row each: which part of W starts the adapter, by role, and whether the base gives it up.

Only names live here, so that the command line can list them without importing torch; `linalg.starts` holds the
functions behind the rules. A new method is one row, a new rule one row and one function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import OptionError

ROLES = ("q", "k", "v", "o")


@dataclass(frozen=True)
class Rule:
    """What one adapter starts from; `moved` if that leaves the base, `frozen_b` if only A is to be trained."""

    name: str
    summary: str
    moved: bool = True
    frozen_b: bool = False


RULES: Mapping[str, Rule] = {
    row.name: row
    for row in (
        Rule("principal", "largest singular components"),
        Rule("minor", "smallest singular components"),
        Rule("middle", "singular components from the middle of the spectrum"),
        Rule("random-orthonormal", "random orthonormal directions of average size"),
        Rule("qr", "first columns of Q, first rows of R"),
        Rule("nystrom", "Nystroem blocks of the leading rows and columns"),
        Rule("minor-left", "B: minor left singular vectors, frozen; A: zero", moved=False, frozen_b=True),
        Rule("kaiming", "A random, B zero", moved=False),
    )
}


@dataclass(frozen=True)
class Method:
    """`rules` maps a role to the part of W that its adapter starts from, a key of RULES."""

    name: str
    rules: Mapping[str, str]
    paper: str
    summary: str

    @property
    def residual(self) -> bool:
        """Whether any rule takes something out of the base."""
        return any(RULES[rule].moved for rule in self.rules.values())

    @property
    def slug(self) -> str:
        """The name as part of a folder's name."""
        return self.name.replace("=", "-").replace(",", "-")


def _all_roles(rule: str) -> dict[str, str]:
    return dict.fromkeys(ROLES, rule)


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            "ailora", {"q": "principal", "v": "minor"}, "AILoRA, arXiv 2510.08034",
            "principal components of W^Q, minor components of W^V",
        ),
        Method(
            "pissa", _all_roles("principal"), "PiSSA, arXiv 2404.02948",
            "principal components of every matrix",
        ),
        Method(
            "milora", _all_roles("minor"), "MiLoRA, arXiv 2406.09044",
            "minor components of every matrix",
        ),
        Method(
            "olora", _all_roles("qr"), "OLoRA, arXiv 2406.01775",
            "first columns of Q and rows of R of W = Q R",
        ),
        Method(
            "nlora", _all_roles("nystrom"), "NLoRA, arXiv 2502.14482",
            "Nystroem blocks of W, unlike its code taken out of the base",
        ),
        Method(
            "mica", _all_roles("minor-left"), "MiCA, arXiv 2604.01694",
            "minor left vectors in a frozen B, zero A, base untouched",
        ),
        Method(
            "lora", _all_roles("kaiming"), "LoRA, arXiv 2106.09685",
            "random A, zero B, base untouched: the control",
        ),
        Method(
            "ailora-reversed", {"q": "minor", "v": "principal"}, "control for AILoRA",
            "minor components of W^Q, principal components of W^V",
        ),
        Method(
            "middle", _all_roles("middle"), "control; a mode of MiLoRA's code",
            "components from the middle of the spectrum",
        ),
        Method(
            "random-orthonormal", _all_roles("random-orthonormal"), "control",
            "random orthonormal directions, as large as an average component",
        ),
    )
}  # fmt: skip


BITFIT = "bitfit"  # no adapter: `init` lists the biases


def find_method(name: str, roles: Sequence[str] = ("q", "v")) -> tuple[Method, tuple[str, ...]]:
    """The row of that name and the roles it is for, or a composition such as q=principal,v=minor, which names its own.

    OptionError if there is no such method or rule, or it has none for one of the roles.
    """
    method = _compose(name) if "=" in name else METHODS.get(name)
    if name == BITFIT:
        raise OptionError(
            "bitfit has no adapter: it trains the biases of the model.", "Use bitfit() or the command line."
        )
    if method is None:
        raise OptionError(f"There is no method {name!r}.", f"Methods: {', '.join([*METHODS, BITFIT])}; or {_EXAMPLE}.")
    if "=" in name:
        return method, tuple(role for role in ROLES if role in method.rules)
    lacking = [role for role in roles if role not in method.rules]
    if lacking:
        raise OptionError(
            f"Method {name!r} says nothing about role {', '.join(lacking)}: it covers {', '.join(method.rules)}.",
            f"Choose a method that covers all roles (such as pissa), or give every rule: {_EXAMPLE}.",
        )
    return method, tuple(roles)


_EXAMPLE = "q=principal,v=minor"


def _compose(text: str) -> Method:
    pairs = [part.split("=", 1) for part in text.split(",")]
    rules = {pair[0]: pair[-1] for pair in pairs}
    if len(rules) < len(pairs) or not set(rules) <= set(ROLES) or not set(rules.values()) <= set(RULES):
        raise OptionError(
            f"--method {text!r} is not a list such as {_EXAMPLE}.",
            f"Roles: {', '.join(ROLES)}, each at most once. Rules: {', '.join(RULES)}.",
        )
    told = ", ".join(f"W^{role.upper()}: {rule}" for role, rule in rules.items())
    return Method(",".join("=".join(pair) for pair in pairs), rules, "composed by hand", told)

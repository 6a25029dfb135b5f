"""The methods, one row each: which part of W starts the adapter, by role, and whether the base gives it up.

Only names live here, so that the command line can list them without importing torch; `linalg.starts` holds the
functions behind the rules. A new method is one row, a new rule one row and one function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import OptionError

ROLES = ("q", "k", "v", "o")  # in the order of a model
Q_AND_V_FIRST = ("q", "v", "k", "o")  # in the order of a table or a page about this method
BITFIT = "bitfit"  # no adapter: `init` lists the biases
# Share of the surgery that must be in the stored base; below it `--rounding auto` rounds stochastically. Rounding to
# nearest leaves 0.15 to 0.4 of a minor surgery on a square bfloat16 W^V: the base would stay nearly the original.
SURVIVAL_WANTED = 0.9

_DATA_DRIVEN = ("eva", "corda", "lora-ga", "lora-null", "lora-one")
_EXAMPLE = "q=principal,v=minor"


@dataclass(frozen=True)
class Rule:
    """What one adapter starts from; `moved` if that leaves the base. `frozen` is the factor that is not to be trained,
    "A" or "B", if any."""

    name: str
    summary: str
    moved: bool = True
    frozen: str = ""


RULES: Mapping[str, Rule] = {
    row.name: row
    for row in (
        Rule("principal", "largest singular components"),
        Rule("minor", "smallest singular components"),
        Rule("middle", "singular components from the middle of the spectrum"),
        Rule("random-orthonormal", "random orthonormal directions of average size"),
        Rule("qr", "first r columns of Q and first r rows of R, where W = Q R"),
        Rule(
            "nystrom",
            "Nystroem approximation of W from its first r rows and columns; it may be larger than W itself, and a base "
            "stored in 16 bits then loses much of W to rounding",
        ),
        Rule("minor-orthonormal", "smallest singular components, each of size 1 whatever its singular value"),
        Rule("minor-left", "B: minor left singular vectors, frozen; A: zero", moved=False, frozen="B"),
        Rule("principal-right", "A: principal right singular vectors; B: zero", moved=False),
        Rule("minor-right", "A: minor right singular vectors; B: zero", moved=False),
        Rule("principal-right-frozen", "the same as principal-right, with A frozen", moved=False, frozen="A"),
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
            "first r columns of Q and first r rows of R, where W = Q R",
        ),
        Method(
            "nlora", _all_roles("nystrom"), "NLoRA, arXiv 2502.14482",
            "Nystroem approximation of W, which is taken out of the base (NLoRA's own code leaves it in)",
        ),
        Method(
            "mica", _all_roles("minor-left"), "MiCA, arXiv 2604.01694",
            "minor left singular vectors in a frozen B, zero A, base untouched",
        ),
        Method(
            "rlpo", _all_roles("principal-right"), "RLPO, arXiv 2606.31813",
            "principal right singular vectors in A, zero B, base untouched",
        ),
        Method(
            "rlmo", _all_roles("minor-right"), "RLMO, arXiv 2606.31813",
            "minor right singular vectors in A, zero B, base untouched",
        ),
        Method(
            "pica", _all_roles("principal-right-frozen"), "PiCa, arXiv 2505.20211",
            "principal right singular vectors in a frozen A, zero B, base untouched (every layer has its own B)",
        ),
        Method(
            "olora-tail", _all_roles("minor-orthonormal"), "OLoRA-tail, arXiv 2606.02437",
            "minor singular vectors without their singular values, taken out of the base",
        ),
        Method(
            "ailora-orthonormal", {"q": "principal-right", "v": "minor-right"}, "control for AILoRA",
            "AILoRA's directions in A, zero B, base untouched: both roles move alike",
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


def find_method(name: str, roles: Sequence[str] | None = None) -> tuple[Method, tuple[str, ...]]:
    """The row of that name and the roles it is for (default q and v), or a composition such as q=principal,v=minor,
    which names its own. Neither blanks nor capitals matter.

    OptionError if there is no such method or rule, or it has none for one of the roles.
    """
    name = name.replace(" ", "").lower()
    if "=" in name:
        return _composition(name, roles)
    method = METHODS.get(name)
    if method is None:
        raise _no_method(name)
    wanted = tuple(roles or ("q", "v"))
    lacking = [role for role in wanted if role not in method.rules]
    if lacking:
        raise OptionError(
            f"Method {name!r} says nothing about role {', '.join(lacking)}: it covers {', '.join(method.rules)}.",
            f"Choose a method that covers all roles (such as pissa), or give every rule: {_EXAMPLE}.",
        )
    return method, wanted


def _no_method(name: str) -> OptionError:
    if name == BITFIT:
        problem = "bitfit has no adapter: it trains the biases of the model."
        return OptionError(problem, "Use bitfit() or the command line.")
    known = f"Methods: {', '.join([*METHODS, BITFIT])}; or a rule for each role: {_EXAMPLE}."
    if name.replace("_", "-") in _DATA_DRIVEN:
        return OptionError(f"{name} starts from activations or gradients, and no data passes through this tool.", known)
    return OptionError(f"There is no method {name!r}.", known)


def _composition(text: str, roles: Sequence[str] | None) -> tuple[Method, tuple[str, ...]]:
    """The rules are checked one by one, so that the message names the one that is wrong."""
    pairs = [(role, rule) for role, _, rule in (part.partition("=") for part in text.split(","))]
    rules = dict(pairs)
    wrong = [f"{role!r} is no role" for role in rules if role not in ROLES]
    wrong += [f"{rule!r} is no rule" for rule in rules.values() if rule not in RULES]
    if len(rules) < len(pairs):
        wrong.append("a role is named twice")
    if roles is not None and set(roles) != set(rules):
        wrong.append(f"its roles are {', '.join(rules)}, those asked for {', '.join(roles)}")
    if wrong:
        raise OptionError(
            f"--method {text!r} is not a list such as {_EXAMPLE}: {'; '.join(wrong)}.",
            f"Roles: {', '.join(ROLES)}, each at most once. Rules: {', '.join(RULES)}.",
        )
    told = ", ".join(f"W^{role.upper()}: {rule}" for role, rule in rules.items())
    method = Method(",".join("=".join(pair) for pair in pairs), rules, "composed by hand", told)
    return method, tuple(role for role in ROLES if role in rules)

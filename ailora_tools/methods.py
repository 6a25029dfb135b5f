"""The methods, one row each: which part of W starts the adapter, by role, and whether the base gives it up.

Only names live here, so that the command line can list them without importing torch; `linalg.starts` holds the
functions behind the rules. A new method is one row, a new rule one row and one function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from .errors import OptionError

ATTENTION = ("q", "k", "v", "o")
ROLES = (*ATTENTION, "gate", "up", "down")  # in the order of a model
Q_AND_V_FIRST = ("q", "v", "k", "o", "gate", "up", "down")  # in the order of a table or a page about this method
ALL_LINEAR = "all-linear"  # in the place of a list of roles: every linear layer of the stack, as PEFT has it
_WORD = re.compile(r"[A-Za-z_]\w+", re.ASCII)
BITFIT = "bitfit"  # no adapter: `init` lists the biases
# Share of the surgery that must be in the stored base; below it `--rounding auto` rounds stochastically. Rounding to
# nearest leaves 0.15 to 0.4 of a minor surgery on a square bfloat16 W^V: the base would stay nearly the original.
SURVIVAL_WANTED = 0.9
# norm(W - (W_res + s B A)) / norm(W) up to which step 0 counts as the original; rounding to bfloat16 costs 0.0016.
ERROR_TAKEN = 0.01

_DATA_DRIVEN = ("eva", "corda", "lora-ga", "lora-null", "lora-one")
_EXAMPLE = "q=principal,v=minor"


@dataclass(frozen=True)
class Rule:
    """What one adapter starts from; `moved` if that leaves the base. `frozen` is the factor that is not to be trained,
    "A" or "B", if any. `pooled` if A reads sums over groups of inputs. Below the rank `least` both factors are zero."""

    name: str
    summary: str
    moved: bool = True
    frozen: str = ""
    pooled: bool = False
    least: int = 1


RULES: Mapping[str, Rule] = {
    row.name: row
    for row in (
        Rule("principal", "largest singular components"),
        Rule("minor", "smallest singular components"),
        Rule("middle", "singular components from the middle of the spectrum"),
        Rule("random-orthonormal", "random orthonormal directions of average size"),
        Rule("sine", "vectors of the discrete sine transform, scaled by the size of W; from rank 2 on", least=2),
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
        Rule("pooled", "A random, over sums of groups of inputs, B zero", moved=False, pooled=True),
    )
}


@dataclass(frozen=True)
class Method:
    """`rules` maps a role to the part of W that its adapter starts from, a key of RULES; `every` is the rule of all
    other roles, "" where there is none."""

    name: str
    paper: str
    summary: str
    rules: Mapping[str, str] = field(default_factory=dict)
    every: str = ""

    @property
    def residual(self) -> bool:
        """Whether any rule takes something out of the base."""
        return any(RULES[rule].moved for rule in (*self.rules.values(), self.every) if rule)

    def covers(self, role: str) -> bool:
        """Whether there is a rule for the role; for `ALL_LINEAR`, one for any role."""
        return bool(self.every) or role in self.rules

    def rule(self, role: str) -> Rule:
        """What the adapters of that role start from."""
        return RULES[self.rules.get(role, self.every)]

    @property
    def pooled(self) -> bool:
        """Whether A reads groups of inputs, which PEFT does on quantised layers alone."""
        return any(RULES[rule].pooled for rule in (*self.rules.values(), self.every) if rule)

    @property
    def slug(self) -> str:
        """The name as part of a folder's name."""
        return self.name.replace("=", "-").replace(",", "-")


def is_role(text: str) -> bool:
    """One of ROLES, or the last name of a module in the model's own words (fc1, in_proj): it may be one."""
    return text in ROLES or _WORD.fullmatch(text) is not None


def symbol(role: str) -> str:
    """How the matrices of a role are called: W^Q, W^gate."""
    return f"W^{role.upper() if len(role) == 1 else role}"


def role_order(role: str) -> tuple[int, str]:
    """Sorts roles as a model has them; those in the model's own words come last."""
    return (ROLES.index(role) if role in ROLES else len(ROLES), role)


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            "ailora", "AILoRA, arXiv 2510.08034", "principal components of W^Q, minor components of W^V",
            {"q": "principal", "v": "minor"},
        ),
        Method(
            "pissa", "PiSSA, arXiv 2404.02948", "principal components of every matrix",
            every="principal",
        ),
        Method(
            "milora", "MiLoRA, arXiv 2406.09044", "minor components of every matrix",
            every="minor",
        ),
        Method(
            "olora", "OLoRA, arXiv 2406.01775", "first r columns of Q and first r rows of R, where W = Q R",
            every="qr",
        ),
        Method(
            "nlora", "NLoRA, arXiv 2502.14482",
            "Nystroem approximation of W, which is taken out of the base (NLoRA's own code leaves it in)",
            every="nystrom",
        ),
        Method(
            "mica", "MiCA, arXiv 2604.01694", "minor left singular vectors in a frozen B, zero A, base untouched",
            every="minor-left",
        ),
        Method(
            "rlpo", "RLPO, arXiv 2606.31813", "principal right singular vectors in A, zero B, base untouched",
            every="principal-right",
        ),
        Method(
            "rlmo", "RLMO, arXiv 2606.31813", "minor right singular vectors in A, zero B, base untouched",
            every="minor-right",
        ),
        Method(
            "pica", "PiCa, arXiv 2505.20211",
            "principal right singular vectors in a frozen A, zero B, base untouched (every layer has its own B)",
            every="principal-right-frozen",
        ),
        Method(
            "olora-tail", "OLoRA-tail, arXiv 2606.02437",
            "minor singular vectors without their singular values, taken out of the base",
            every="minor-orthonormal",
        ),
        Method(
            "ailora-orthonormal", "control for AILoRA",
            "AILoRA's directions in A, zero B, base untouched: both roles move alike",
            {"q": "principal-right", "v": "minor-right"},
        ),
        Method(
            "lora", "LoRA, arXiv 2106.09685", "random A, zero B, base untouched: the control",
            every="kaiming",
        ),
        Method(
            "qalora", "QA-LoRA, arXiv 2309.14717",
            "random A over sums of groups of inputs, zero B, base untouched: for GPTQ",
            every="pooled",
        ),
        Method(
            "ailora-reversed", "control for AILoRA", "minor components of W^Q, principal components of W^V",
            {"q": "minor", "v": "principal"},
        ),
        Method(
            "middle", "control; a mode of MiLoRA's code", "components from the middle of the spectrum",
            every="middle",
        ),
        Method(
            "random-orthonormal", "control", "random orthonormal directions, as large as an average component",
            every="random-orthonormal",
        ),
        Method(
            "loram", "LoRAM, arXiv 2507.06558", "a sine basis scaled by the size of W, whatever its directions",
            every="sine",
        ),
    )
}  # fmt: skip


def find_method(name: str, roles: Sequence[str] | None = None) -> tuple[Method, tuple[str, ...]]:
    """The row of that name and the roles it is for (default q and v), or a composition such as q=principal,v=minor,
    which names its own; `all-linear=minor` in it is the rule of all others. Neither blanks nor capitals matter, but in
    a model's own words.

    OptionError if there is no such method or rule, or it has none for one of the roles.
    """
    name = name.replace(" ", "")
    if "=" in name:
        return _composition(name, roles)
    method = METHODS.get(name.lower())
    if method is None:
        raise _no_method(name.lower())
    wanted = tuple(roles or ("q", "v"))
    lacking = [role for role in wanted if not method.covers(role)]
    if lacking:
        rest = f"{_EXAMPLE},{lacking[0]}=principal"
        raise OptionError(
            f"Method {method.name!r} says nothing about role {', '.join(lacking)}: it covers "
            f"{', '.join(method.rules)}.",
            f"Choose a method that covers all roles (such as pissa), or give every rule: {rest}.",
        )
    return method, wanted


def _no_method(name: str) -> OptionError:
    if name == BITFIT:
        problem = "bitfit has no adapter: it trains the biases of the model."
        return OptionError(problem, "Use bitfit() or the command line.")
    known = f"Methods: {', '.join([*METHODS, BITFIT])}; or a rule for each role: {_EXAMPLE}."
    if name.replace("_", "-") in _DATA_DRIVEN:
        return OptionError(f"{name} starts from activations or gradients, and no data passes through this tool.", known)
    near = get_close_matches(name, [*METHODS, BITFIT], 1)
    return OptionError(f"There is no method {name!r}.{f' Did you mean {near[0]}?' if near else ''}", known)


def _composition(text: str, roles: Sequence[str] | None) -> tuple[Method, tuple[str, ...]]:
    """The rules are checked one by one, so that the message names the one that is wrong."""
    pairs = [(_role(role), rule.lower()) for role, _, rule in (part.partition("=") for part in text.split(","))]
    rules = dict(pairs)
    wrong = [f"{role!r} is no role" for role in rules if role != ALL_LINEAR and not is_role(role)]
    wrong += [f"{rule!r} is no rule" for rule in rules.values() if rule not in RULES]
    if len(rules) < len(pairs):
        wrong.append("a role is named twice")
    every = rules.pop(ALL_LINEAR, "")
    asked = tuple(sorted(rules, key=role_order)) if roles is None and not every else tuple(roles or (ALL_LINEAR,))
    idle = ALL_LINEAR not in asked and set(rules) - set(asked)
    if idle or (not every and set(asked) - set(rules)):
        wrong.append(f"its roles are {', '.join(rules)}, those asked for {', '.join(asked)}")
    if wrong:
        raise OptionError(
            f"--method {text!r} is not a list such as {_EXAMPLE}: {'; '.join(wrong)}.",
            f"Roles: {', '.join(ROLES)}, or names of the model's own modules, each at most once; all-linear for all "
            f"others. Rules: {', '.join(RULES)}.",
        )
    told = ", ".join(f"{symbol(role)}: {rule}" for role, rule in pairs)
    return Method(",".join("=".join(pair) for pair in pairs), "composed by hand", told, rules, every), asked


def _role(text: str) -> str:
    """Capitals matter in a model's own words alone."""
    return lower if (lower := text.lower()) in (*ROLES, ALL_LINEAR) else text

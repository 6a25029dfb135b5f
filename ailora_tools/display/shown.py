"""`progress=True` of the verbs in Python: the bar of the command line, or in a notebook one of tqdm."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def shows_progress(verb: Callable[P, T]) -> Callable[P, T]:
    """Draw a bar while `verb` runs if it is called with `progress=True`; it gets a listener in any case."""

    @wraps(verb)
    def run(*args: P.args, **options: P.kwargs) -> T:
        if options.get("progress") is not True:
            return verb(*args, **options)
        # Imported here: a script that wants no bar needs no rich.
        from .bar import drawn
        from .notebook import in_notebook, strip

        with strip() if in_notebook() else drawn() as listener:
            options["progress"] = listener
            return verb(*args, **options)

    return run

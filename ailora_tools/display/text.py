"""Text for a terminal: nothing that it would obey, and nothing that its encoding lacks.

Names in a checkpoint are a stranger's. What a terminal would obey in them is shown as an escape sequence instead.
"""

from __future__ import annotations

import codecs
import re
import sys

# Control characters (C0, DEL, C1), line separators, what turns the direction of writing, and lone surrogates.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BARS = "▁▂▃▄▅▆▇█"
_PLAINLY = "in plain characters"  # the name of the handler, for `errors=`
# What screens are made of, for encodings that lack it; one character for one where a table depends on the width.
_PLAIN = {
    "✔": "+", "✘": "x", "•": "*", "…": "...", "×": "x", "−": "-", "–": "-", "≥": ">=", "≤": "<=", "·": "*",
    "‖": "|", "Δ": "d", "α": "alpha", "σ": "s", "Σ": "sum", "²": "^2", "→": "->", "⌊": "floor(", "⌋": ")",
    **{bar: str(level) for level, bar in enumerate(BARS, 1)},
}  # fmt: skip


def visible(text: str) -> str:
    """Text as it can be shown in one line: ESC becomes \\x1b. A byte of a name that is not UTF-8 reads \\xe9, too."""
    return OBEYED.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00 if "\udc80" <= character <= "\udcff" else ord(character)  # PEP 383
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"


def settle_streams() -> None:
    """What the encoding of stdout or stderr lacks is written in plain characters, names as escape sequences."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_PLAINLY)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """The marks of screens by `_PLAIN`, all else as Python's backslashreplace does it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    refused = error.object[error.start : error.end]
    if all(character in _PLAIN for character in refused):
        return "".join(_PLAIN[character] for character in refused), error.end
    if refused[0] in _PLAIN:
        return _PLAIN[refused[0]], error.start + 1
    error.end = error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error(_PLAINLY, _plainly)

"""Where a user wants the output: a path that can be used, checked before any work is done."""

from __future__ import annotations

from pathlib import Path

from ..errors import OutputError


def destination(output: str | Path) -> Path:
    """`output` as an absolute path; it need not be there.

    OutputError if it is empty, has an unknown ~user, a NUL or too long a name, lies where nobody may enter, or in the
    Hugging Face cache, whose files are those of all who use it.
    """
    if not str(output):  # an unset variable in a shell; Path("") would silently be the current folder
        raise OutputError("-o is empty.", "Name the folder to write.")
    try:
        final = Path(output).expanduser().absolute()
        final.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise OutputError(f"{output}: cannot be used: {reason}.", "Choose another -o.") from None
    if cache := _cache_around(final):
        raise OutputError(f"{final}: lies in the Hugging Face cache ({cache}).", "Choose another -o.")
    return final


def _cache_around(final: Path) -> Path | None:
    """The repository in the cache that the path lies in: models--ORG--NAME with blobs."""
    parents = final.resolve().parents
    return next((up for up in parents if up.name.startswith("models--") and (up / "blobs").is_dir()), None)

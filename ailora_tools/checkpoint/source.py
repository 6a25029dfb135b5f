"""What MODEL means: a folder, one .safetensors file, or a model on the Hub."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypedDict
from urllib.parse import urlsplit

from ..errors import CheckpointError, OptionError
from .files import Files, LocalFiles, Origin

SCHEME = "hf://"
_HOSTS = ("huggingface.co", "hf.co")
_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^@\s]+))?")
_URL = re.compile(
    rf"https?://(?P<host>[^/]+)/(?P<repo>{_NAME}/{_NAME})(?:/tree/(?P<revision>[^/]+)(?:/(?P<subfolder>.+?))?)?/?(?:\?.*)?"
)
_OWNERS = {
    "openai-community": ("gpt2", "openai-gpt"),
    "google-bert": ("bert-",),
    "google-t5": ("t5-",),
    "FacebookAI": ("roberta-", "xlm-"),
    "distilbert": ("distil",),
    "albert": ("albert-",),
}
_FORMS = "MODEL is a folder, a .safetensors file, or a Hub id such as org/name or org/name@revision"


class SourceOptions(TypedDict, total=False):
    """How to read MODEL.

    revision: branch, tag or commit of a Hub id (default: main). subfolder: of a folder or a repository.
    connections: reads at a time from the Hub (default 8). download: fetch whole files into the Hugging Face cache
    instead of reading parts of them.
    """

    revision: str | None
    subfolder: str | None
    connections: int
    download: bool


@dataclass(frozen=True)
class HubName:
    """A parsed Hub id."""

    repo: str
    revision: str | None
    subfolder: str


def open_files(
    model: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    connections: int = 8,
    download: bool = False,
) -> Files:
    """The files of MODEL; an existing path wins over a Hub id.

    Raises CheckpointError if there is no such path or model, OptionError for options that contradict each other.
    """
    if not str(model):  # an unset variable in a shell; Path("") would silently be the current folder
        raise CheckpointError("MODEL is empty.", f"{_FORMS}.")
    inside = _inside(subfolder)
    path = _existing(model)
    if path is not None:
        if revision is not None:
            raise OptionError(f"--revision {revision}: {model} is a path here, not a Hub id.", "Leave --revision out.")
        return _local(model, path, inside)
    name = parse_hub_name(str(model), revision, inside)
    if connections < 1:
        raise OptionError(f"--connections {connections}: must be at least 1.")
    from .remote import open_hub

    return open_hub(name.repo, name.revision, name.subfolder, connections=connections, download=download)


def parse_hub_name(text: str, revision: str | None = None, subfolder: str = "") -> HubName:
    """`org/name[@revision]`, the same behind hf://, or the address of the model's page.

    CheckpointError if it is none of these, OptionError if two places name different revisions.
    """
    page = _URL.fullmatch(text)
    if page is not None and page["host"] not in (*_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc):
        raise CheckpointError(f"{text}: {page['host']} is not the Hub.", f"{_FORMS}.")
    found = page or _HUB_ID.fullmatch(text.removeprefix(SCHEME))
    if found is None:
        raise CheckpointError(f"{text}: no such file or folder.", f"{_FORMS}: check the spelling.{_owned(text)}")
    named = found.groupdict()
    if revision is not None and named["revision"] not in (None, revision):
        raise OptionError(f"--revision {revision}, but {text} names {named['revision']}.", "Give one of the two.")
    return HubName(named["repo"], revision or named["revision"], subfolder or named.get("subfolder") or "")


def is_hub_name(text: str) -> bool:
    """Whether a text is `org/name[@revision]`, as ids on the Hub are written."""
    return _HUB_ID.fullmatch(text) is not None


def _owned(text: str) -> str:
    """On the Hub every model has an owner now; those that once had none went to these."""
    if not re.fullmatch(_NAME, text):
        return ""
    owner = next((owner for owner, begins in _OWNERS.items() if text.lower().startswith(begins)), "OWNER")
    return f" On the Hub it would be {owner}/{text}."


def _inside(subfolder: str | None) -> str:
    parts = PurePosixPath(subfolder or "").parts
    if ".." in parts or PurePosixPath(subfolder or "").is_absolute():
        raise OptionError(f"--subfolder {subfolder}: must lie inside of MODEL.", "Such as --subfolder transformer.")
    return "/".join(parts)


def _existing(model: str | Path) -> Path | None:
    if str(model).startswith((SCHEME, "http://", "https://")):
        return None
    path = user_path(model)
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{model}: a link to {path.readlink()}, which is not there.", "Fetch the file that it leads to."
        )
    return path if path.exists() else None


def user_path(text: str | Path, what: str = "MODEL") -> Path:
    """What a user wrote, with ~ expanded; the path need not be there.

    CheckpointError that names it if it is empty, or could not be looked at: no permission to enter a folder of it, a
    name that is too long, an unknown ~user, a NUL.
    """
    if not str(text):  # an unset variable in a shell; Path("") would silently be the current folder
        raise CheckpointError(f"{what} is empty.", "Give a path.")
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise CheckpointError(f"{text}: cannot be opened: {reason}.", "Check the path and its permissions.") from None
    return path


def _local(model: str | Path, path: Path, subfolder: str) -> LocalFiles:
    if subfolder:
        path = path / subfolder
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder.", "Check the spelling of --subfolder.")
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) and path.name.endswith(".json") and ".safetensors.index." in path.name:
        return LocalFiles(path.parent, Origin(str(path)))  # the folder, of which find_shards takes this index
    if not stat.S_ISDIR(mode) and not (stat.S_ISREG(mode) and path.suffix == ".safetensors"):
        what = "not a .safetensors file" if stat.S_ISREG(mode) else "a pipe or a device"
        raise CheckpointError(
            f"{model}: {what}.", "Give the folder of the model, or one .safetensors file or index of it."
        )
    return LocalFiles(path)

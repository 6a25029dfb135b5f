"""Folders in which verbs are run with a fault: see `kit.faults`.

Every run writes `out` in a room where other things lie that are none of its business; its inputs lie outside.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kit.checkpoints import llama_tensors, write_checkpoint
from kit.faults import NOTHING, Call, Done, Fault, FaultServer, Run

Content = dict[str, bytes | str]
OVERWRITE, RESUME = "--overwrite", "--resume"


@dataclass(frozen=True)
class Form:
    """A command line, most of which write OUT. `older`: one whose result it replaces; `crowd`: more folders beside OUT.

    MODEL, BIASED, START and TRAINED stand for the inputs that `inputs` makes.
    """

    name: str
    line: str
    older: str = ""
    crowd: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        return self.line.split()[0]

    @property
    def resumable(self) -> bool:
        return self.verb in ("init", "analyze") and "bitfit" not in self.line

    @property
    def writes(self) -> bool:
        return self.verb != "verify"


_CONVERT = "convert TRAINED --init START -o OUT"
FORMS = (
    Form("init", "init MODEL --rank 4 -o OUT"),
    Form("init --overwrite", "init MODEL --rank 4 -o OUT", older="init MODEL --rank 2 --method pissa -o OUT"),
    Form("init --base-dtype float32 --dora", "init MODEL --rank 4 --base-dtype float32 --dora -o OUT"),
    Form("init --no-base", "init MODEL --rank 4 --no-base -o OUT", crowd=("out.partial",)),
    Form("init --method bitfit", "init BIASED --method bitfit -o OUT"),
    Form("analyze", "analyze MODEL --against START --rank 4 -o OUT"),
    Form("analyze --overwrite", "analyze MODEL --suggest-ranks 2 --rank 4 -o OUT", "analyze MODEL --rank 2 -o OUT"),
    Form("convert", _CONVERT),
    Form("convert --overwrite", _CONVERT, older=f"{_CONVERT} --rank 1", crowd=("out.partial",)),
    Form("merge", "merge START TRAINED -o OUT"),
    Form("merge --overwrite", "merge START TRAINED -o OUT", older="merge START TRAINED --base-dtype float32 -o OUT"),
    Form("export --to mlx", "export TRAINED --to mlx -o OUT"),
    Form("export --to torchtune --overwrite", "export START --to torchtune -o OUT", "export START --to mlx -o OUT"),
)
VERIFY = Form("verify", "verify START --source MODEL")


def inputs(server: FaultServer, folder: Path) -> Mapping[str, Path]:
    """MODEL, BIASED (with biases, too), START (`init` of MODEL) and TRAINED, its adapter after some training."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 48}
    made = {name: folder / name.lower() for name in ("MODEL", "BIASED", "START", "TRAINED")}
    write_checkpoint(made["MODEL"], llama_tensors(), 2, **heads)
    biases = {f"model.layers.{layer}.self_attn.q_proj.bias": torch.ones(48) for layer in range(2)}
    write_checkpoint(made["BIASED"], llama_tensors() | biases, **heads)
    done = server.run(["init", made["MODEL"], "--rank", "4", "-o", made["START"], "--quiet"], folder)
    assert done.code == 0, done.printed
    shutil.copytree(made["START"] / "ailora_init", made["TRAINED"])
    weights = made["TRAINED"] / "adapter_model.safetensors"
    save_file({name: value * 1.25 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    return made


def content(folder: Path) -> Content:
    """Everything below: bytes of files, where links lead, and folders."""
    found: Content = {}
    for root, folders, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        for name in (*folders, *files):
            path = Path(root, name)
            held = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
            found[(here / name).as_posix()] = held if isinstance(held, bytes) else str(held)
    return found


def below(found: Content, name: str) -> Content | None:
    """What lies in one of the folders; None if it is not there."""
    inside = {key.removeprefix(f"{name}/"): value for key, value in found.items() if key.startswith(f"{name}/")}
    return inside if name in found else None


class Room:
    """A form in its room: what it holds before a run, what is in OUT when one is done, and the calls on the way."""

    def __init__(self, form: Form, server: FaultServer, inputs: Mapping[str, Path], path: Path, kept: Path) -> None:
        self.form, self.path, self.kept, self._server = form, path, kept, server
        self.inputs = {**inputs, "OUT": path / "out"}
        for name in ("out.old", *form.crowd):
            (path / name).mkdir(parents=True)
            (path / name / "notes.txt").write_text("of the user")
        self.bystanders = content(path)
        self.followed: dict[tuple[bytes, str], list[str]] = {}  # what went wrong after a state
        if form.older:
            self.succeed(self.words(form.older))
        self.older = self.out()
        self.keep("before")
        self.succeed(self.command)
        self.finished, self.given = self.out(), self.inputs_now()

    def succeed(self, command: Sequence[str], fault: Fault = NOTHING) -> Done:
        """Run it, and it has to go well."""
        done = self.run(command, fault)
        assert done.code == 0, done.printed
        return done

    @functools.cache  # noqa: B019 - rooms live as long as the tests
    def points(self, fault: Fault) -> list[tuple[int, Call]]:
        """The calls of the room's command at which the fault can happen, with their numbers."""
        self.back()
        return fault.points(
            self.succeed(self.command, Fault(NOTHING.name, kinds=fault.kinds, inputs=fault.inputs)).calls
        )

    def words(self, line: str) -> list[str]:
        """A command line with the paths in it."""
        return [*(str(self.inputs.get(word, word)) for word in line.split()), "--quiet"]

    @property
    def plain(self) -> list[str]:
        """The command without leave to replace or go on with anything."""
        return self.words(self.form.line)

    @property
    def command(self) -> list[str]:
        """The command of this form."""
        return [*self.plain, *([OVERWRITE] if self.form.older else [])]

    def start(self, command: Sequence[str], fault: Fault = NOTHING, at: int = 0, **limits: int) -> Run:
        """Start a command line, with a fault at a call below the room, or below the inputs."""
        root = self.inputs["MODEL"].parent if fault.inputs else self.path
        return self._server.start(command, root, fault, at, **limits)

    def run(self, command: Sequence[str], fault: Fault = NOTHING, at: int = 0, **limits: int) -> Done:
        """Start it and wait for its end."""
        done = self.start(command, fault, at, **limits).wait()
        assert done is not None
        return done

    def inputs_now(self) -> Content:
        """Everything that lies where the inputs lie."""
        return content(self.inputs["MODEL"].parent)

    def out(self) -> Content | None:
        """What is under the final name now; None if nothing is."""
        return below(content(self.path), "out")

    def astray(self) -> list[str]:
        """Names in the room besides OUT that were not there before, are gone, or were changed."""
        now = {name: held for name, held in content(self.path).items() if name != "out" and not name.startswith("out/")}
        return sorted(name for name in now | self.bystanders if now.get(name) != self.bystanders.get(name))

    def state(self) -> bytes:
        """A hash of everything in the room, but for what differs from run to run: the process, and chosen names."""
        found = repr(sorted(content(self.path).items()))
        return hashlib.sha256(re.sub(r'"pid": \d+|\.\w+\.partial|\.tmp\w+', "X", found).encode()).digest()

    def keep(self, name: str) -> None:
        """Remember the state of the room."""
        shutil.rmtree(self.kept / name, ignore_errors=True)
        shutil.copytree(self.path, self.kept / name, symlinks=True)

    def back(self, name: str = "before") -> None:
        """Make it what it was."""
        shutil.rmtree(self.path)
        shutil.copytree(self.kept / name, self.path, symlinks=True)


Rooms = Callable[[Form], Room]

"""A folder appears whole, for one run at a time, and nothing that is not this run's is ever removed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ailora_tools.checkpoint.files import LocalFiles, Origin
from ailora_tools.errors import CheckpointError, NumericalError, OutputError, UnfinishedError
from ailora_tools.output import atomic, platform
from ailora_tools.output import work as room
from ailora_tools.output.atomic import Output, building, making, require_possible
from ailora_tools.output.place import output_folder, require_outside, require_space
from ailora_tools.output.sources import Sources
from ailora_tools.progress import Silent

JOB = {"source": "x", "rank": 8}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(output: Output, **files: str) -> None:
    """One run that writes these files."""
    with building(output) as work:
        for name, text in files.items():
            (work.tree / name).write_text(text)


def made_by_init(final: Path, **files: str) -> None:
    """A folder as `init` leaves it, with a manifest that lists its files."""
    final.mkdir()
    for name, text in files.items():
        (final / name).write_text(text)
    (final / "ailora.json").write_text(json.dumps({"schema": 5, "files": {name: {} for name in files}}))


def interrupted(output: Output) -> None:
    with pytest.raises(KeyboardInterrupt), building(output) as work:
        work.record({"copied": "a"})
        raise KeyboardInterrupt


def killed(final: Path, step: str) -> None:
    """A run with --overwrite that dies, as by SIGKILL, before it publishes or while it removes the old folder."""
    code = f"""
import os
from pathlib import Path
from ailora_tools.output import atomic

real = atomic.rename_new
def last(old, new):
    return os._exit(9) if old.name == "tree" and {step!r} == "before it publishes" else real(old, new)

atomic.rename_new = last
if {step!r} == "while it removes":
    atomic.WorkFolder.remove = lambda self: os._exit(9)
with atomic.building(atomic.Output(Path({str(final)!r}), "init", {JOB!r}, overwrite=True)) as work:
    (work.tree / "ailora.json").write_text('{{"schema": 5, "files": {{}}}}')
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9


def test_the_folder_appears_whole_and_alone(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with building(Output(final, "init", JOB)) as work:
        (work.tree / "file").write_text("x")
        assert not final.exists()
    assert names(tmp_path) == ["final"] and (final / "file").read_text() == "x"


def test_bad_input_leaves_nothing_not_even_the_folders_around(tmp_path: Path) -> None:
    for error in (NumericalError("NaN"), CheckpointError("cut")):
        with pytest.raises(type(error)), building(Output(tmp_path / "a" / "b" / "final", "init", JOB)) as work:
            (work.tree / "file").write_text("x")
            raise error
        assert not names(tmp_path)


def test_what_is_no_fault_of_the_input_keeps_the_work_and_says_so(tmp_path: Path) -> None:
    output = Output(tmp_path / "final", "init", JOB)
    with pytest.raises(UnfinishedError, match=r"RuntimeError: cusolver.*\n.*--resume"), building(output) as work:
        work.record({"copied": "a"})
        raise RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR")
    with building(Output(tmp_path / "final", "init", JOB, resume=True)) as work:
        assert work.finished("copied") == ["a"]
    assert names(tmp_path) == ["final"]


def test_an_interruption_can_be_resumed_and_only_with_the_same_job(tmp_path: Path) -> None:
    final = tmp_path / "final"
    interrupted(Output(final, "init", JOB))
    with pytest.raises(OutputError, match="an unfinished `init` is here"):
        make(Output(final, "init", JOB))
    with pytest.raises(OutputError, match="differs in rank"):
        make(Output(final, "init", {**JOB, "rank": 16}, resume=True))
    with building(Output(final, "init", JOB, resume=True)) as work:
        assert work.finished("copied") == ["a"]
    assert names(tmp_path) == ["final"]


def test_another_verb_neither_goes_on_with_an_unfinished_run_nor_removes_it_unasked(tmp_path: Path) -> None:
    final = tmp_path / "final"
    interrupted(Output(final, "init", JOB))
    with pytest.raises(OutputError, match="unfinished `init`"), making(Output(final, "convert")):
        pass
    with pytest.raises(OutputError, match="`analyze` cannot go on with"):
        make(Output(final, "analyze", JOB, resume=True))
    assert (tmp_path / "final.partial" / "journal.jsonl").read_text() == '{"copied": "a"}\n'
    with making(Output(final, "convert", overwrite=True)):
        pass
    assert names(tmp_path) == ["final"]


def test_what_a_killed_short_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with pytest.raises(KeyboardInterrupt), making(Output(final, "merge")) as tree:
        (tree / "file").write_text("x")
        raise KeyboardInterrupt
    assert not names(tmp_path)
    code = "import os; from pathlib import Path; from ailora_tools.output.atomic import Output, making\n"
    code += f"with making(Output(Path({str(final)!r}), 'merge')): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert "final.partial" in names(tmp_path)
    with making(Output(final, "merge")) as tree:
        assert not names(tree)
    assert names(tmp_path) == ["final"]


def test_a_cut_journal_line_is_ignored(tmp_path: Path) -> None:
    final = tmp_path / "final"
    interrupted(Output(final, "init", JOB))
    journal = tmp_path / "final.partial" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"copied": "b')
    with building(Output(final, "init", JOB, resume=True)) as work:
        assert work.finished("copied") == ["a"]
        work.record({"copied": "c"})
        assert journal.read_text().splitlines() == ['{"copied": "a"}', '{"copied": "c"}']


def test_a_run_says_what_its_bytes_hang_on_once_it_knows(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with pytest.raises(KeyboardInterrupt), building(Output(final, "init", JOB)) as work:
        work.agree("compute", {"threads": 2})
        raise KeyboardInterrupt
    with building(Output(final, "init", JOB, resume=True)) as work:
        with pytest.raises(OutputError, match="compute"):
            work.agree("compute", {"threads": 1})
        work.agree("compute", {"threads": 2})


@pytest.mark.parametrize("kind", ["folder", "file", "link", "empty folder"])
def test_foreign_things_beside_the_output_stay(tmp_path: Path, kind: str) -> None:
    final, left = tmp_path / "final", {}
    for name in ("final.partial", "final.old", "final.replaced"):
        path = tmp_path / name
        if kind == "file":
            path.write_text("mine")
        elif kind == "link":
            path.symlink_to(tmp_path / "nowhere")
        else:
            path.mkdir()
            if kind == "folder":
                (path / "mine").write_text("x")
        left[name] = path.lstat().st_ino
    make(Output(final, "init", JOB), file="x")
    made_again = Output(final, "merge", overwrite=True, force=True)
    (final / "ailora-result.json").write_text('{"verb": "merge", "files": ["file"]}')
    with making(made_again):
        pass
    assert {name: (tmp_path / name).lstat().st_ino for name in left} == left
    assert names(tmp_path) == sorted(["final", *left])


def test_only_folders_of_the_same_verb_are_replaced_and_only_without_strangers_in_them(tmp_path: Path) -> None:
    final = tmp_path / "final"
    made_by_init(final, weights="old")
    with pytest.raises(OutputError, match="already exists"):
        make(Output(final, "init", JOB))
    with (
        pytest.raises(OutputError, match="not written by ailora-tools merge"),
        making(Output(final, "merge", None, True)),
    ):
        pass
    (final / "checkpoint-100").mkdir()
    (final / "checkpoint-100" / "optimizer.pt").write_text("hours")
    with pytest.raises(OutputError, match=r"did not write, such as checkpoint-100/optimizer\.pt"):
        make(Output(final, "init", JOB, overwrite=True))
    assert (final / "weights").read_text() == "old"
    with building(Output(final, "init", JOB, overwrite=True, force=True)) as work:
        (work.tree / "new").write_text("y")
        assert (final / "weights").exists(), "the old folder stays until the new one is complete"
    assert names(final) == ["new"] and names(tmp_path) == ["final"]


@pytest.mark.parametrize("text", ["{}", "[]", "null", "not json", '{"format": "other", "files": []}'])
def test_a_file_of_the_right_name_makes_no_folder_ours(tmp_path: Path, text: str) -> None:
    for verb, name in (("init", "ailora.json"), ("analyze", "analysis.json"), ("merge", "ailora-result.json")):
        final = tmp_path / verb
        final.mkdir()
        (final / name).write_text(text)
        (final / "thesis.tex").write_text("x")
        with pytest.raises(OutputError, match="was not written by"):
            make(Output(final, verb, JOB, overwrite=True, force=True))
        assert names(final) == sorted([name, "thesis.tex"])


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with pytest.raises(OutputError, match="appeared while"), building(Output(final, "init", JOB)):
        final.mkdir()
        (final / "mine").write_text("x")
    assert (final / "mine").read_text() == "x" and (tmp_path / "final.partial" / "tree").is_dir()


def test_killed_before_the_new_folder_stands_the_old_one_is_put_back(tmp_path: Path) -> None:
    final = tmp_path / "final"
    made_by_init(final, weights="old")
    killed(final, "before it publishes")
    assert names(tmp_path) == [".final.lock", "final.partial"]
    with pytest.raises(OutputError, match="already exists"):
        make(Output(final, "init", JOB))
    assert (final / "weights").read_text() == "old"
    make(Output(final, "init", JOB, overwrite=True, resume=True))
    assert names(tmp_path) == ["final"] and names(final) == ["ailora.json"]


def test_killed_while_the_old_folder_is_removed_the_next_run_removes_the_rest(tmp_path: Path) -> None:
    final = tmp_path / "final"
    made_by_init(final, weights="old")
    killed(final, "while it removes")
    assert names(tmp_path) == [".final.lock", "final", "final.partial"] and names(final) == ["ailora.json"]
    make(Output(final, "init", JOB, overwrite=True), file="x")
    assert names(tmp_path) == ["final"] and names(final) == ["file"]


def test_a_work_folder_that_is_half_removed_still_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    made_by_init(final, weights="old")
    (final / "more").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(room.shutil, "rmtree", raising(errno.EIO))
        make(Output(final, "init", JOB, overwrite=True, force=True), file="x")
    left, _ = names(tmp_path)
    assert left.startswith(".final.") and "owner.json" in names(tmp_path / left)
    with pytest.raises(OutputError, match="already exists"):
        make(Output(final, "init", JOB))
    assert names(tmp_path) == ["final"]


@pytest.mark.parametrize("inside", [[], ["owner.json"]])
def test_what_a_run_left_before_it_said_whose_it_is(tmp_path: Path, inside: list[str]) -> None:
    for name in (".final.0123abcd.partial", ".other.0123abcd.partial"):
        (tmp_path / name).mkdir()
        for file in inside:
            (tmp_path / name / file).write_text('{"too')
    make(Output(tmp_path / "final", "init", JOB))
    assert names(tmp_path) == [".other.0123abcd.partial", "final"]


def test_two_runs_on_one_output(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with building(Output(final, "init", JOB)) as work:
        (work.tree / "file").write_text("x")
        told = rf"another run is writing here \(init, process {os.getpid()} on "
        for second in (Output(final, "init", JOB, overwrite=True), Output(final, "init", JOB, resume=True)):
            with pytest.raises(OutputError, match=told):
                make(second)
        with pytest.raises(OutputError, match=told), making(Output(final, "convert", overwrite=True)):
            pass
    assert names(tmp_path) == ["final"] and names(final) == ["file"]


def test_the_lock_of_a_dead_run_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".final.lock").write_text('{"verb": "init", "pid": 1, "host": "x"}')
    make(Output(tmp_path / "final", "init", JOB))
    assert names(tmp_path) == ["final"]


def test_without_locks_and_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "fcntl", None)
    monkeypatch.setattr(platform, "_renameat2", None)
    final = tmp_path / "final"
    make(Output(final, "init", JOB), file="x")
    assert names(tmp_path) == ["final"]
    (tmp_path / "a").mkdir()
    assert not platform.rename_new(tmp_path / "a", final) and platform.rename_new(tmp_path / "a", tmp_path / "b")


def test_a_link_as_output_stands_for_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    made_by_init(tmp_path / "disk" / "real", weights="old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    final = output_folder(tmp_path / "link", "", [], Silent())
    make(Output(final, "init", JOB, overwrite=True), file="x")
    assert (
        (tmp_path / "link").is_symlink()
        and names(tmp_path / "link") == ["file"]
        and names(tmp_path / "disk") == ["real"]
    )


@pytest.mark.parametrize("length", [200, 246, 250, 255])
def test_long_names(tmp_path: Path, length: int) -> None:
    final = tmp_path / ("a" * length)
    interrupted(Output(final, "init", JOB))
    make(Output(final, "init", JOB, resume=True), file="x")
    assert names(tmp_path) == [final.name]


def test_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write here: File name too long"):
        make(Output(tmp_path / ("a" * 300), "init", JOB))
    assert not names(tmp_path)


def raising(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write_all", "sync_tree", "write_new"])
def test_a_disk_that_fails_ends_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    final = tmp_path / "final"
    told = "cannot write" if number == errno.EIO else "the disk is full"
    with monkeypatch.context() as patch:
        patch.setattr(atomic if call == "sync_tree" else room, call, raising(number))
        with pytest.raises(OutputError, match=told), building(Output(final, "init", JOB)) as work:
            (work.tree / "file").write_text("x")
            work.record({"copied": "a"})
    assert not final.exists()
    make(Output(final, "init", JOB, resume=True), file="x")
    assert names(tmp_path) == ["final"]


def test_room_is_counted_without_what_is_written_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "final"
    with pytest.raises(KeyboardInterrupt), building(Output(final, "init", JOB, nbytes=1 << 20)) as work:
        (work.tree / "file").write_bytes(bytes(1 << 20))
        raise KeyboardInterrupt

    class Usage:
        free = 1 << 19

    monkeypatch.setattr("ailora_tools.output.place.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(OutputError, match="GB are needed"):
        require_possible(Output(tmp_path / "other", "init", JOB, nbytes=1 << 20))
    with pytest.raises(OutputError, match="GB are needed"):
        make(Output(tmp_path / "other", "init", JOB, nbytes=1 << 20))
    assert names(tmp_path) == ["final.partial"]
    require_possible(Output(final, "init", JOB, nbytes=1 << 20, resume=True))
    make(Output(final, "init", JOB, nbytes=1 << 20, resume=True))


def test_a_source_that_changes_is_an_error_and_never_a_mixture(tmp_path: Path) -> None:
    source, final = tmp_path / "source", tmp_path / "out" / "final"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_text(name)
    sources = Sources((LocalFiles(source), ["a", "b"]))
    with (
        pytest.raises(CheckpointError, match="source/b: changed"),
        building(Output(final, "init", JOB), sources.require_unchanged),
    ):
        (source / "b").write_text("longer")
    assert not (tmp_path / "out").exists()
    then = {"files": sources.to_json()}
    interrupted(Output(final, "init", then))
    with pytest.raises(OutputError, match="differs in files"):
        make(Output(final, "init", {"files": Sources((LocalFiles(source), ["a", "b"])).to_json()}, resume=True))


@pytest.mark.parametrize("place", ["source", "source/inside", "source/../source", "."])
def test_the_output_stays_clear_of_the_source(tmp_path: Path, place: str) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(OutputError, match="source"):
        require_outside(tmp_path / place, Origin(str(tmp_path / "source")))


def test_a_link_to_the_source_is_the_source(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "source")
    with pytest.raises(OutputError, match="the source itself"):
        require_outside(tmp_path / "link", Origin(str(tmp_path / "source")))


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_the_default_output_lies_beside_the_model_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    here = tmp_path / "model" / inside
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    told: list[str] = []

    class Telling(Silent):
        def notice(self, text: str) -> None:
            told.append(text)

    assert output_folder(None, "reports/x", [Origin(str(tmp_path / "model"))], Telling()) == tmp_path / "reports" / "x"
    assert len(told) == 1 and str(tmp_path / "reports" / "x") in told[0]
    assert output_folder(None, "x", [Origin(str(tmp_path / "elsewhere"))], Telling()) == here / "x" and len(told) == 1


def test_too_little_room_is_said_before_writing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="GB are needed"):
        require_space(tmp_path / "not" / "there", 1 << 60)

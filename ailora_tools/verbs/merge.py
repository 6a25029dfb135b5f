"""`merge`: a base and an adapter become one checkpoint, shard by shard; other tensors are copied as bytes.

W' = W + s B A in float32 and, for DoRA, W' = m * (W + s B A) / norm of its rows (arXiv 2402.09353, equation 5).
Of a base in few bits every matrix is written as the numbers that it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from ..adapters.complete import require_complete
from ..adapters.few_bits import about_few_bits, kept_companions, sources_of
from ..adapters.folder import Adapter, open_adapter
from ..adapters.peft import ADAPTER_FILES
from ..adapters.places import Place, Places
from ..adapters.zeros import about_lost
from ..checkpoint.header import BASE_DTYPES, FACTOR_DTYPES, StoredTensor
from ..checkpoint.index import CONFIG, Checkpoint, read_checkpoint
from ..checkpoint.source import SourceOptions
from ..checkpoint.transfer import Traffic
from ..display.shown import shows_progress
from ..errors import OptionError, listed
from ..matrices.restore import Restored
from ..output.atomic import Output, building
from ..output.base import BaseWriter, companions, copy_file, left_out, require_readable
from ..output.cards.compose import library_of
from ..output.cards.made import merge_card
from ..output.cards.source import source_of_model
from ..output.layout import ShardLayout, restate_index, widened
from ..output.manifest import fingerprint
from ..output.names import CARD, RESULT
from ..output.place import output_folder
from ..output.result import write_result
from ..output.sources import Sources
from ..output.spans import write_json, write_text
from ..output.work import WorkFolder
from ..progress import Progress, heard
from ..targets.ties import untied
from ..team.part import Part
from ..team.sharing import share
from ..team.team import Job, find_team
from .announce import announce
from .merge_matrices import Merging, find_all, help_merge, layouts_of, merging, sizes
from .processes import Library, call_for_work, credit, device_of, is_published, kind_of, publishing
from .result import Result
from .right_base import require_right_base, start_beside
from .shards import copied_by_all


@dataclass(frozen=True)
class Merged:
    """One tensor and norm(W' - W) / norm(W), Frobenius, as stored."""

    tensor: str
    change: float


@dataclass(frozen=True, repr=False)
class Merge(Result):
    """Where the merged checkpoint lies, what was changed by how much, and what was in few bits before.

    lost: the largest share of a change that zero points in float16 or MLX's biases do not hold; None without them.
    """

    folder: Path
    modules: tuple[Merged, ...]
    dtypes: tuple[str, ...]
    restored: tuple[str, ...] = ()
    lost: float | None = None

    _columns = ("tensor", "change")

    def told(self) -> str:
        """How many tensors changed, and where the model is."""
        return f"of {len(self.modules)} tensors, {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "folder": str(self.folder),
            "dtypes": list(self.dtypes),
            "modules": [asdict(module) for module in self.modules],
            "restored": list(self.restored),
            "lost": self.lost,
        }


@shows_progress
def merge(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    base_dtype: str = "keep",
    dtype: str | None = None,
    zeros: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    force: bool = False,
    progress: Progress | bool | None = None,
    **source: Unpack[SourceOptions],
) -> Merge:
    """Write the checkpoint `base` with `adapter` added in, as PEFT's `merge_and_unload` would, but without the model.

    `base` is the checkpoint that the adapter was trained on: the residual base that `initialize` wrote, or an original
    for a plain LoRA. `base_dtype` "float32" widens the changed tensors. A base in few bits becomes the plain model that
    it stands for: each of its matrices in the dtype that config.json states, or in `dtype` (float32, bfloat16,
    float16), and nothing of the quantisation is left. Inputs are never changed.

    With `zeros` "float" a base in few bits stays so, and a QA-LoRA goes into its zero points, which become float16, in
    compressed-tensors' "int-quantized", or into the biases of MLX's layers; no other format has room for it.

    Under torchrun all processes call this and share the changed tensors; the first one alone writes, and the others get
    nothing of the result.

    Raises CheckpointError, TargetError where the two do not belong together, OptionError, NumericalError, OutputError.

    >>> made = merge("start", "start/ailora_init", "merged")
    >>> len(made.modules), made.dtypes
    (4, ('F32',))
    """
    if base_dtype not in BASE_DTYPES or dtype not in (None, *FACTOR_DTYPES):
        known = f"{' or '.join(BASE_DTYPES)}, and {', '.join(FACTOR_DTYPES)}"
        raise OptionError(f"base dtype {base_dtype!r}, dtype {dtype!r}: they must be {known}.")
    if zeros not in (None, "float") or (zeros and (dtype, base_dtype) != (None, "keep")):
        raise OptionError(
            f"zeros {zeros!r}: it must be float, and nothing is stored in another dtype then.",
            "Leave out --dtype and --base-dtype, or --zeros.",
        )
    progress = heard(progress)
    with find_team().job("merge") as job:
        if not job.leads:
            help_merge(job, base, adapter, dtype, base_dtype, zeros, device, source)
            return Merge(Path(), (), ())
        library = Library(job)
        stored, held = read_checkpoint(library.open(base, **source)), open_adapter(adapter)
        folder = output_folder(output, "", [stored.origin, held.files.origin], progress)
        for text in require_right_base(stored, held):
            progress.notice(text)
        plan = _plan(stored, held, base_dtype, dtype, zeros)
        _tell(plan, progress)
        job.call({"sources": library.tell(), "shards": fingerprint(stored), "adapter": sizes(held)})
        if is_published(job, folder):
            return _published(folder)
        nbytes = sum(layout.size for layout in plan.layouts.values()) + sum(size for _, size in plan.copied)
        out = Output(folder, "merge", overwrite=overwrite, force=force, nbytes=nbytes)
        sources = Sources((stored.files, [name for name, _ in plan.parts]), (held.files, ADAPTER_FILES))
        with building(out, publishing(job, folder, sources.require_unchanged)) as work:
            return _make(job, plan, folder, work, device, progress)


@dataclass(frozen=True)
class _Plan:
    """What is written where: `stored` is the base as it is, `restored` without few bits; `added` the parameters that
    shared a tensor, with that tensor; `copied` the other files and their bytes."""

    stored: Checkpoint
    held: Adapter
    base_dtype: str
    restored: Restored
    found: Places
    places: Sequence[Place]
    added: Mapping[str, StoredTensor]
    layouts: Mapping[str, ShardLayout]
    copied: Sequence[tuple[str, int]]

    @property
    def checkpoint(self) -> Checkpoint:
        return self.restored.plain

    @property
    def dtypes(self) -> dict[str, str]:
        """Of every parameter that is written anew."""
        return {place.name: widened(place.stored.dtype, self.base_dtype) for place in self.places}

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Every file that is read, and its bytes."""
        return [*self.copied, *((shard, header.file_size) for shard, header in self.checkpoint.headers.items())]


def _plan(stored: Checkpoint, held: Adapter, base_dtype: str, dtype: str | None, zeros: str | None) -> _Plan:
    restored, found, places = find_all(stored, held, dtype, zeros)
    checkpoint = restored.plain
    added = {place.name: place.stored for place in places if place.added}
    layouts = layouts_of(stored, restored, places, base_dtype)
    copied = [(name, checkpoint.files.size(name)) for name in kept_companions(restored, companions(checkpoint))]
    return _Plan(stored, held, base_dtype, restored, found, places, added, layouts, copied)


def _tell(plan: _Plan, progress: Progress) -> None:
    """What the user should know before anything is written; what cannot be merged."""
    checkpoint, held = plan.checkpoint, plan.held
    complete = require_complete(checkpoint, held, plan.found, start_beside(checkpoint))
    about = (*about_few_bits(plan.restored, plan.dtypes), *_about_ties(plan.found))
    for text in (*checkpoint.told, *left_out(checkpoint), *complete, *held.notices, *about):
        progress.notice(text)
    require_readable(checkpoint, (name for name, _ in plan.copied))
    announce(checkpoint.files, plan.parts, sum(size for _, size in plan.parts), progress)


def _make(job: Job, plan: _Plan, folder: Path, work: WorkFolder, device: str, progress: Progress) -> Merge:
    """Merge one tensor after the other while the shards are copied; then the files beside them."""
    files, tree = plan.checkpoint.files, work.tree
    items = [Merging(one) for one in sources_of(plan.restored, plan.places)]
    with BaseWriter(files, plan.layouts, tree, {}, hashed=False, alone=job.alone) as writer:
        place = device_of(device, job)
        spool = call_for_work(job, kind_of(place), work, shared_folder=True)
        progress.start("Merging", len(items), 0)
        merged = share(
            job, "tensors", items, merging(files, plan.held, plan.base_dtype, place, progress.notice), spool, progress
        )
        shared = None if job.alone else work.root
        with copied_by_all(job, writer, files, plan.layouts, shared, progress):
            written = _write(merged, files.traffic, writer, progress)
    for name, _ in plan.copied:
        copy_file(files, name, tree / name)
    restate_index(tree, plan.checkpoint, plan.dtypes, plan.added)
    wide = [item.name for item in items if written[item.name]["wide"]]
    _restate_config(tree, plan.stored, plan.checkpoint, plan.found, wide, progress)
    touched = {one.name for one in plan.found.places}
    modules = tuple(Merged(item.name, written[item.name]["change"]) for item in items if item.name in touched)
    lost = None
    if plan.restored.in_zeros:
        lost, text = about_lost({item.name: written[item.name]["lost"] for item in items})
        progress.notice(text)
    dtypes, restored = tuple(sorted(set(plan.dtypes.values()))), plan.restored
    result = Merge(folder, modules, dtypes, () if restored.in_zeros else tuple(restored.matrices), lost)
    write_text(tree / CARD, _card(plan, result, progress))
    made_from = {"base": plan.checkpoint.origin.to_json(), "adapter": plan.held.files.origin.to_json()["location"]}
    write_result(tree, {"verb": "merge", **made_from, **result.to_json()})
    return result


def _card(plan: _Plan, result: Merge, progress: Progress) -> str:
    original = source_of_model(plan.stored.files)
    for text in original.notices:
        progress.notice(text)
    changes, library = [one.change for one in result.modules], library_of(plan.checkpoint.config, original)
    return merge_card(result.folder.name, original, changes, len(result.restored), library)


def _about_ties(found: Places) -> list[str]:
    names = listed(found.untied)
    return [f"{names} have tensors of their own now; tie_word_embeddings is false"] if found.untied else []


def _restate_config(
    tree: Path, stored: Checkpoint, checkpoint: Checkpoint, found: Places, wide: Sequence[str], progress: Progress
) -> None:  # fmt: skip
    """config.json anew where the merged model is another than that of the base as `stored` says: nothing is in few bits
    (as in `checkpoint`), nothing is tied, or the dtype that loaders take from it would make infinity of the tensors
    `wide`."""
    config = untied(checkpoint.config) if found.untied else dict(checkpoint.config)
    if wide:
        config = _in_float32(config)
        progress.notice(f"float16 does not hold {listed(wide)}: config.json says float32 now")
    if config != stored.config and CONFIG in stored.files.names():
        write_json(tree / CONFIG, config)


def _in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with float32 wherever it states the dtype of the weights."""
    inner = {key: _in_float32(value) for key, value in config.items() if isinstance(value, dict)}
    stated = {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
    return {**config, **inner, **stated}


def _write(
    results: Iterable[tuple[Merging, Part]], traffic: Traffic | None, writer: BaseWriter, progress: Progress
) -> dict[str, Any]:
    """Shards are being copied in the background: put each merged tensor into its place, then wait for the rest. What is
    told of each, by name."""
    written = {}
    for item, part in results:
        credit(traffic, part)
        writer.write(item.source.place.stored.file, item.name, memoryview(part.blobs[0]))
        written[item.name] = part.meta
        progress.advance(item.name, item.nbytes)
    progress.start("Copying", len(writer.shards), 0)
    for shard in writer.shards:
        writer.sha256(shard)  # waits until it is complete and on disk
        progress.advance(shard)
    return written


def _published(folder: Path) -> Merge:
    """What was written before the processes were started anew."""
    told = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    modules = tuple(Merged(**module) for module in told["modules"])
    return Merge(folder, modules, tuple(told["dtypes"]), tuple(told["restored"]), told.get("lost"))

"""A LoRA folder as PEFT and the trainers on top of it save it: which modules, which factors, which scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import Files, LocalFiles, below
from ..checkpoint.gate import INDEX_BYTES, Factor, Rank, View, read_json, typed
from ..checkpoint.header import FLOATS, Header, StoredTensor, quoted
from ..checkpoint.index import CONFIG, read_header
from ..checkpoint.shards import TRAINABLE_WEIGHTS
from ..checkpoint.source import is_hub_name, open_files, user_path
from ..errors import CheckpointError, TargetError, listed
from .expressions import require_matchable
from .keys import FROZEN, WHOLE, Key, read_key
from .peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LARGEST_SCALING, pattern_value, rivals, scaling_of
from .pooled import as_plain
from .returned import as_peft, is_returned

if TYPE_CHECKING:
    from torch import Tensor

# Settings of LoRA in PEFT under which W + s B A is not what the module computes.
_VARIANTS = ("use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
             "alora_invocation_tokens", "layer_replication", "target_parameters")  # fmt: skip
# Starts of PEFT that take what the factors hold out of the base: once for training, and once more at every loading.
_TAKING = ("pissa", "olora", "loftq", "corda", "lora_ga")


class _Settings(View):
    """The fields of adapter_config.json that are used here, as PEFT knows them; null stands for the default."""

    r: Rank | None = None
    lora_alpha: Factor = 8.0
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Factor] | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    lora_bias: bool | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool | None = None
    fan_in_fan_out: bool | None = None
    lora_dropout: float | None = None
    bias: str | None = None
    task_type: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Factors:
    """Where lora_A (r, in), lora_B (out, r) and what may be beside them lie; scaling as PEFT computes it.

    magnitude: DoRA's, (out,). bias: lora_B's own, (out,). embedding: lora_embedding_A (r, words) and lora_embedding_B
    (width, r), whose product is the transpose of what is added to the weight (words, width).
    """

    A: StoredTensor
    B: StoredTensor
    magnitude: StoredTensor | None
    scaling: float
    bias: StoredTensor | None = None
    embedding: bool = False

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in) of the module."""
        return self.B.shape[0], self.A.shape[1]


@dataclass(frozen=True)
class Adapter:
    """The folder: adapter_config.json and every tensor by what it is for.

    modules: module path -> factors. others: whole tensors (`modules_to_save`, biases) by the name of the parameter in
    the model. tokens: module path -> the new rows of an embedding. Paths are the adapter's own, without the words of
    wrappers; `binding` finds their places in a base.
    """

    files: Files
    config: Mapping[str, Any]
    modules: Mapping[str, Factors]
    others: Mapping[str, StoredTensor]
    tokens: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def location(self) -> str:
        return self.files.origin.text

    @property
    def dora(self) -> bool:
        return bool(self.config.get("use_dora"))

    @property
    def notices(self) -> tuple[str, ...]:
        """Files beside it that hold weights and that no verb reads (states of the optimizer hold none), and an alpha
        that may not be the one that was trained with."""
        more = [name for name in self.files.names() if name != ADAPTER_WEIGHTS and _holds_weights(name)]
        told = [f"not read, though they hold weights: {listed(more)} beside {self.location}"] if more else []
        alphas = ((module, rivals(self.config.get("alpha_pattern"), module)) for module in self.modules)
        if found := next((one for one in alphas if one[1]), None):
            told.append(
                f"{listed(found[1])} of alpha_pattern in {self.location} all match {found[0]}: the first counts, as in "
                "PEFT, which sorts them when it saves; in training it may have been another"
            )
        return tuple(told)

    def under(self, module: str, path: str) -> Factors:
        """The factors of `module`, whose name in the base is `path`: patterns may be written for either of the two.
        CheckpointError, TargetError as `read_adapter` raises them."""
        factors = self.modules[module]
        names = tuple(dict.fromkeys((path, module)))
        rank = pattern_value(self.config.get("rank_pattern"), names, self.config.get("r"))
        if rank is not None and rank != factors.rank:
            raise TargetError(
                f"{self.location}: {module} has rank {factors.rank}, {ADAPTER_CONFIG} says {rank}.",
                "The two files belong to different adapters: save it again.",
            )
        return replace(factors, scaling=_scaling(self.location, self.config, names, factors.rank))

    def same(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Whether two tensors of the file are the same, byte for byte."""
        return _same(self.files, one, other)

    def load(self, stored: StoredTensor) -> Tensor:
        """One tensor of the file, as stored; NumericalError if it holds NaN or infinity."""
        from ..checkpoint.stream import load_matrix
        from ..linalg.finite import require_finite

        tensor = load_matrix(self.files, stored)
        require_finite(tensor, f"{self.location}: {stored.name}", "Its training diverged: use an earlier checkpoint.")
        return tensor


def open_adapter(folder: str | Path) -> Adapter:
    """A folder, or a repository `org/name[@revision]`, with an adapter in it, or in the only one of its subfolders that
    has one; a path that is there wins.

    Raises CheckpointError where there is none, or where its scaling is no usable number; TargetError for another kind
    than LoRA.
    """
    path = user_path(folder, "ADAPTER")
    if not path.exists() and is_hub_name(path.as_posix()):
        return adapter_in(open_files(path.as_posix()))
    if path.is_dir() and is_returned(LocalFiles(path), [below.name for below in path.glob("*.*")]):
        return read_adapter(LocalFiles(path))
    if not (path / ADAPTER_CONFIG).is_file():
        inner = sorted(below.parent for below in path.glob(f"*/{ADAPTER_CONFIG}")) if path.is_dir() else []
        if len(inner) != 1:
            found = f"there are several below it: {listed([str(one) for one in inner])}" if inner else "none is there"
            raise CheckpointError(
                f"{path}: expected an adapter ({ADAPTER_CONFIG}), but {found}.",
                "Give the folder that the trainer saved the adapter to, such as output/checkpoint-100.",
            )
        path = inner[0]
    return read_adapter(LocalFiles(path))


def has_adapter(path: Path) -> bool:
    """Whether `open_adapter` would find one there, and no model beside it."""
    if not path.is_dir():
        return False
    if (path / ADAPTER_CONFIG).is_file() or is_returned(LocalFiles(path), [below.name for below in path.glob("*.*")]):
        return True
    return not (path / CONFIG).is_file() and len(list(path.glob(f"*/{ADAPTER_CONFIG}"))) == 1


def read_adapter(files: Files) -> Adapter:
    """The adapter in the root of `files`, PEFT's or what another trainer made of an export; QA-LoRA as a plain one."""
    files = as_plain(as_peft(files))
    config = read_config(files)
    _require_plain(files.where(ADAPTER_CONFIG), config)
    if ADAPTER_WEIGHTS not in files.names():
        raise CheckpointError(f"{files.origin.text}: {ADAPTER_WEIGHTS} is missing.", "Save the adapter as safetensors.")
    parts, others, tokens = _sorted_out(files, read_header(files, ADAPTER_WEIGHTS))
    modules = {module: _factors(files.origin.text, held, config, module) for module, held in parts.items()}
    return Adapter(files, config, modules, others, tokens)


def _require_plain(where: str, config: Mapping[str, Any]) -> None:
    """TargetError unless the base with this adapter is W + s B A, of the base as it is."""
    if config.get("peft_type") != "LORA":
        raise TargetError(
            f"{where}: peft_type is {quoted(config.get('peft_type'))}; only LORA is known.",
            "Merge the adapter into its base first, and work with the merged checkpoint.",
        )
    variants = [name for name in _VARIANTS if config.get(name)]
    if variants:
        raise TargetError(
            f"{where}: {listed(variants)} is set; W + s B A is not what such a module computes.",
            "Merge the adapter into its base with PEFT, and work with the merged checkpoint.",
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_TAKING):
        raise TargetError(
            f"{where}: init_lora_weights is {quoted(start)}: PEFT takes the start out of the base whenever it loads "
            "this adapter, and W + s B A would count it twice.",
            "In PEFT save it with path_initial_model_for_weight_conversion=START, the adapter before training. If the "
            "base is the one that was left, saved beside the start, set init_lora_weights to true.",
        )


def adapter_in(files: Files) -> Adapter:
    """The adapter in the root of `files`, or in the one folder below that has one; CheckpointError where none has, or
    more than one."""
    if isinstance(files, LocalFiles):
        return open_adapter(files.root)
    inner = [name.rpartition("/")[0] for name in files.names() if name.rpartition("/")[2] == ADAPTER_CONFIG]
    if "" in inner:
        return read_adapter(files)
    if len(inner) != 1:
        found = f"there are several below it: {listed(inner)}" if inner else "none is there"
        raise CheckpointError(
            f"{files.origin.text}: expected an adapter ({ADAPTER_CONFIG}), but {found}.",
            "Give the repository of an adapter.",
        )
    return read_adapter(below(files, inner[0]))


def read_config(files: Files) -> dict[str, Any]:
    """adapter_config.json; CheckpointError if a field that is used here is not of PEFT's type, TargetError for an
    expression that cannot be matched in bounded time."""
    config = read_json(files, ADAPTER_CONFIG, INDEX_BYTES)
    typed(config, files.where(ADAPTER_CONFIG), _Settings, "Save the adapter again, or correct the field.")
    for name in ("rank_pattern", "alpha_pattern"):
        try:
            require_matchable(config.get(name) or ())
        except TargetError as error:
            raise TargetError(f"{files.where(ADAPTER_CONFIG)}: {name}: {error.problem}", error.hint) from None
    return config


_Whole = dict[str, StoredTensor]


def _same(files: Files, one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are the same, byte for byte."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bytes(files.read(one.file, one.start, one.stop)) == bytes(files.read(other.file, other.start, other.stop))


def _sorted_out(files: Files, header: Header) -> tuple[dict[str, _Whole], _Whole, _Whole]:
    """Module -> its parts; whole tensors; rows of embeddings. TargetError for names of no known kind, and where two
    tensors are the same part of one module: the file holds several adapters. (With save_embedding_layers PEFT writes a
    trained embedding or output layer twice.)"""
    folder, held = files.origin.text, dict[Key, StoredTensor]()
    for name, stored in header.tensors.items():
        key = read_key(name)
        if key in held and key.part != FROZEN and not (key.part == WHOLE and _same(files, held[key], stored)):
            raise TargetError(
                f"{folder}: {held[key].name} and {name} are for the same place.",
                "Save one adapter alone: model.save_pretrained(folder, selected_adapters=[...]).",
            )
        held[key] = stored
    strange = [stored.name for key, stored in held.items() if not key.part]
    if strange:
        raise TargetError(
            f"{folder}: {listed(strange)} cannot be merged or converted: no known part of a LoRA.",
            "Merge the adapter into its base with PEFT, and work with the merged checkpoint.",
        )
    modules: dict[str, _Whole] = {}
    for key, stored in held.items():
        if key.part not in (WHOLE, FROZEN, "tokens"):
            modules.setdefault(key.path, {})[key.part] = stored
    others = {key.path: stored for key, stored in held.items() if key.part == WHOLE}
    tokens = {key.path: stored for key, stored in held.items() if key.part == "tokens"}
    return modules, others, tokens


def _factors(folder: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any], module: str) -> Factors:
    embedding = "embedding A" in parts or "embedding B" in parts
    A, B = (parts.get(f"embedding {side}" if embedding else side) for side in "AB")
    if A is None or B is None or len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1] or 0 in A.shape:
        shapes = [part.shape if part else None for part in (B, A)]
        raise TargetError(
            f"{folder}: B and A of {module} have shapes {shapes[0]} and {shapes[1]}; expected (out, r) and (r, in).",
            "Save the adapter of a model whose LoRA modules are linear layers, without sharding.",
        )
    if any(part.dtype not in FLOATS for part in parts.values()):
        raise TargetError(f"{folder}: {module} is stored as {A.dtype}.", "Save the adapter in a float type.")
    _require_complete(folder, parts, config, module)
    scaling = _scaling(folder, config, (module,), A.shape[0])
    magnitude = parts.get("magnitude") if config.get("use_dora") else None
    return Factors(A, B, magnitude, scaling, parts.get("bias"), embedding)


_PARTS = (("use_dora", "magnitude", "lora_magnitude_vector"), ("lora_bias", "bias", "lora_B.bias"))


def _require_complete(folder: str, parts: Mapping[str, StoredTensor], config: Mapping[str, Any], module: str) -> None:
    """A module has what the config says of all, and nothing that PEFT would leave out because the config does not."""
    embedding = "embedding A" in parts
    for setting, part, name in _PARTS:
        promised = bool(config.get(setting)) and not (embedding and part == "bias")
        if promised and part not in parts:
            raise TargetError(
                f"{folder}: {setting} is set, but {module} has no {name}.",
                "The file is incomplete: save the adapter again.",
            )
        if part in parts and not promised:
            raise TargetError(
                f"{folder}: {module} has {name}, but {setting} is not set.",
                "Save the adapter again, with its own adapter_config.json.",
            )
    if embedding and ("A" in parts or "B" in parts):
        raise TargetError(
            f"{folder}: {module} has factors of a linear layer and of an embedding.",
            "Save the adapter again, with its own adapter_config.json.",
        )


def _scaling(folder: str, config: Mapping[str, Any], names: tuple[str, ...], rank: int) -> float:
    alpha = pattern_value(config.get("alpha_pattern"), names, config.get("lora_alpha", 8))
    scaling = scaling_of(alpha, rank, bool(config.get("use_rslora")))
    if scaling is None:
        raise CheckpointError(
            f"{folder}/{ADAPTER_CONFIG}: alpha of {names[-1]} is {quoted(alpha)} at rank {rank}; the scaling must be a "
            f"number above 0 and at most {LARGEST_SCALING:,.0f}.",
            "Set lora_alpha (or alpha_pattern) to what the adapter was trained with.",
        )
    return scaling


_STATES = ("optimizer", "scheduler", "rng_state", "scaler", "training_args", "trainer_state")


def _holds_weights(name: str) -> bool:
    return (
        "/" not in name and name.endswith((".safetensors", *TRAINABLE_WEIGHTS)) and not name.startswith((*_STATES, "."))
    )

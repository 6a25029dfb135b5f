"""The mistakes that merging is known for, each done to a right merge in float32 with s = 2 and r = 4."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kit.merges import EMBEDDING, HEAD, MLP, K, Q, Tensors, V

S, R = 2.0, 4
TOUCHED = (*Q, *V)
Change = Callable[[Tensors, Tensors, dict[str, Tensor]], Any]  # merged tensors to damage, those of the base, B A


@dataclass(frozen=True)
class Fault:
    """A mistake; the check that fails, and words of what it says."""

    change: Change
    check: str
    words: str

    @property
    def name(self) -> str:
        return self.change.__name__


FAULTS: list[Fault] = []


def told(check: str, words: str) -> Callable[[Change], Change]:
    """Put a mistake into the list."""

    def add(change: Change) -> Change:
        FAULTS.append(Fault(change, check, words))
        return change

    return add


def put(M: Tensors, names: Iterable[str], value: Callable[[str], Tensor]) -> None:
    M.update({name: value(name) for name in names})


@told("merged", "is the base's: the adapter is not in it")
def a_module_is_missing(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[Q[1]] = W[Q[1]]


@told("merged", "has the adapter in it twice")
def it_is_in_it_twice(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: M[name] + S * D[name])


@told("merged", "v_proj.weight has the adapter in it twice")
def it_is_twice_in_one_module(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, V[:1], lambda name: M[name] + S * D[name])


@told("merged", "taken out of it, not added")
def it_was_taken_out(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name] - S * D[name])


@told("merged", "(alpha without r)")
def alpha_without_r(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name] + S * R * D[name])


@told("merged", "(alpha / r left out)")
def no_scaling(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name] + D[name])


@told("merged", "is scaled by 4, the adapter's scaling is 2 (alpha / sqrt(r), as of rsLoRA)")
def scaled_as_rslora(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name] + S * R**0.5 * D[name])


@told("merged", "is scaled by 1.9, the adapter's scaling is 2")
def scaled_by_a_little_less(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name] + 1.9 * D[name])


@told("merged", "has what the adapter has for model.layers.0.self_attn.v_proj")
def q_and_v_are_swapped(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, Q, lambda name: W[name] + S * D[name.replace("q_proj", "v_proj")])
    put(M, V, lambda name: W[name] + S * D[name.replace("v_proj", "q_proj")])


@told("merged", "has what the adapter has for model.layers.1.self_attn.q_proj")
def two_layers_are_swapped(M: Tensors, W: Tensors, D: Tensors) -> None:
    M.update({Q[0]: W[Q[0]] + S * D[Q[1]], Q[1]: W[Q[1]] + S * D[Q[0]]})


@told("merged", "has the adapter transposed (fan_in_fan_out)")
def it_is_transposed(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name] + S * D[name].T)


@told("merged", "is of another model")
def the_base_is_another_model(M: Tensors, W: Tensors, D: Tensors) -> None:
    generator = torch.Generator().manual_seed(3)
    put(M, TOUCHED, lambda name: torch.randn(W[name].shape, generator=generator) / 50 + S * D[name])


@told("merged", "another checkpoint of the training was merged, or another base")
def the_base_is_a_fine_tune(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: M[name] + 0.05 * W[name].roll(1, 0))


@told("differs from the base", "it is the base: the adapter was not merged")
def the_base_itself(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name])


@told("differs from the base", "it is the base: the adapter was not merged")
def the_base_rounded(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, list(M), lambda name: W[name].bfloat16())


@told("merged", "differs from the base by rounding to bfloat16 only")
def a_module_of_rounding_alone(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[Q[0]] = W[Q[0]].bfloat16().float()


@told("merged", "went through bfloat16")
def through_a_narrower_type(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[Q[0]] = M[Q[0]].bfloat16().float()


@told("number types", f"{MLP} is BF16, in the base F32")
def a_tensor_in_a_narrower_type(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[MLP] = M[MLP].bfloat16()


@told("number types", f"{V[1]} is F16, in the base F32")
def a_merged_tensor_in_a_narrower_type(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[V[1]] = M[V[1]].half()


@told("tensors", f"{HEAD} missing, the output layer, which is not tied")
def the_head_is_lost(M: Tensors, W: Tensors, D: Tensors) -> None:
    del M[HEAD]


@told("tensors", "tie_word_embeddings became true")
def it_is_tied_by_the_config(M: Tensors, W: Tensors, D: Tensors) -> dict[str, Any]:
    return {"tie_word_embeddings": True}


@told("untouched", f"{EMBEDDING} is not the base's")
def the_embeddings_changed(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[EMBEDDING] = 1.01 * M[EMBEDDING]


@told("untouched", f"{K[0]} is not the base's")
def it_is_in_one_module_more(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[K[0]] = W[K[0]] + S * D[Q[0]]


@told("untouched", f"{K[0]}, {K[1]} is not the base's")
def keys_of_two_layers_are_swapped(M: Tensors, W: Tensors, D: Tensors) -> None:
    M.update({K[0]: W[K[1]], K[1]: W[K[0]]})


@told("untouched", f"{MLP} is not the base's")
def one_bit_is_flipped(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[MLP] = M[MLP].clone()
    M[MLP].view(torch.int32)[0, 0] ^= 1


@told("tensors", f"{MLP} missing")
def a_tensor_is_missing(M: Tensors, W: Tensors, D: Tensors) -> None:
    del M[MLP]


@told("tensors", "q_proj.bias not in the base")
def a_tensor_more(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[Q[0].replace("weight", "bias")] = torch.ones(64)


@told("untouched", f"{EMBEDDING} has shape [100, 64], the base [96, 64]")
def more_words(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[EMBEDDING] = torch.cat([W[EMBEDDING], W[EMBEDDING][:4]])


@told("merged", "holds NaN or infinity")
def not_finite(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[V[0]] = M[V[0]] * torch.nan


@told("config", "num_attention_heads is 2, in the base 4")
def another_number_of_heads(M: Tensors, W: Tensors, D: Tensors) -> dict[str, Any]:
    return {"num_attention_heads": 2}


@told("merged", "another checkpoint of the training was merged, or another base")
def another_checkpoint_of_the_training(M: Tensors, W: Tensors, D: Tensors) -> None:
    put(M, TOUCHED, lambda name: W[name] + S * (D[name] + 0.05 * D[name].roll(1, 0)))


@told("merged", "q_proj.weight has the adapter in it, and is ")
def one_entry_is_off(M: Tensors, W: Tensors, D: Tensors) -> None:
    M[Q[0]] = M[Q[0]].clone()
    M[Q[0]][3, 5] += 1e-4

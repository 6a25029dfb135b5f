"""TABLE of everything an analysis states about a matrix or a change: name, formula, source, and how to read it.

The CSV's columns, the report's glossary and menus, and the tests derive from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """key: in analysis.json. label: for people. formula: plain Unicode, s for singular values, k = min(m, n).

    of: "matrix" or "change". log: whether a logarithmic scale shows it best. Headline metrics stand first.
    """

    key: str
    label: str
    formula: str
    source: str
    meaning: str
    of: str = "matrix"
    log: bool = False


_ENTROPY = "Roy and Vetterli, EUSIPCO 2007, with the energies s² in place of s, which let noise dominate"
_WEIGHTWATCHER = "Martin, Peng and Mahoney, Nature Communications 12, 2021; arXiv 1810.01075"

DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "effective_rank_share", "effective rank / k", "exp(−Σ p log p) / k,  p = s² / Σ s²", _ENTROPY,
        "Share of the directions that the matrix really uses: 1 if all are equally strong, 1/k if there is one.",
    ),
    Definition(
        "stable_rank_share", "stable rank / k", "Σ s² / s₁² / k", "Rudelson and Vershynin, J. ACM 54(4), 2007",
        "How many directions as strong as the strongest would hold the energy, as a share of k.",
    ),
    Definition(
        "rank_90_share", "rank for 90 % energy / k", "min r : Σ₁ʳ s² ≥ 0.9 Σ s², over k", "energy criterion",
        "Share of the directions that 90 % of the squared norm needs.",
    ),
    Definition(
        "outlier_share", "values above the noise edge / k", "#{s > edge} / k", "see noise edge",
        "Share of the singular values that noise of the same bulk would not have. About 0 for pure noise of any shape.",
    ),
    Definition(
        "outlier_energy", "energy above the noise edge", "Σ_{s > edge} s² / Σ s²", "see noise edge",
        "Share of the squared norm in those values.",
    ),
    Definition(
        "alpha", "power-law α", "maximum likelihood of p(λ) ∝ λ^−α above the λ_min with least KS distance, λ = s²",
        _WEIGHTWATCHER,
        "Heavier tails have smaller α. One fitted exponent jumps when λ_min jumps: read it with its error, its KS "
        "distance and the number of values in the tail.",
    ),
    Definition(
        "frobenius_norm", "Frobenius norm", "‖W‖_F = √Σ s²", "definition", "Overall size.", log=True,
    ),
    Definition(
        "spectral_norm", "spectral norm", "‖W‖₂ = s₁", "definition", "The most it can stretch a unit vector.", log=True,
    ),
    Definition("nuclear_norm", "nuclear norm", "Σ s", "definition", "Sum of all singular values.", log=True),
    Definition(
        "smallest", "smallest singular value", "s_k", "definition",
        "Below the resolvable floor it is only known to be below.", log=True,
    ),
    Definition(
        "condition", "condition number", "s₁ / s_k", "definition",
        "Empty where s_k lies below the resolvable floor.", log=True,
    ),
    Definition("stable_rank", "stable rank", "Σ s² / s₁²", "Rudelson and Vershynin 2007", "In directions.", log=True),
    Definition("effective_rank", "effective rank", "exp(−Σ p log p)", _ENTROPY, "In directions.", log=True),
    Definition(
        "participation_ratio", "participation ratio", "(Σ s²)² / Σ s⁴", "Bell and Dean, Disc. Faraday Soc. 50, 1970",
        "Another effective number of directions, less sensitive to many small ones.", log=True,
    ),
    Definition("rank_50", "rank for 50 % energy", "min r : Σ₁ʳ s² ≥ 0.5 Σ s²", "energy criterion", "In directions.",
               log=True),
    Definition("rank_90", "rank for 90 % energy", "min r : Σ₁ʳ s² ≥ 0.9 Σ s²", "energy criterion", "In directions.",
               log=True),
    Definition("rank_95", "rank for 95 % energy", "min r : Σ₁ʳ s² ≥ 0.95 Σ s²", "energy criterion", "In directions.",
               log=True),
    Definition("rank_99", "rank for 99 % energy", "min r : Σ₁ʳ s² ≥ 0.99 Σ s²", "energy criterion", "In directions.",
               log=True),
    Definition(
        "noise_scale", "noise scale", "t = median(s) / √(N μ),  μ the Marchenko-Pastur median for m / n",
        "Gavish and Donoho, arXiv 1305.5870", "Standard deviation of elements that a noise bulk like this one has.",
        log=True,
    ),
    Definition(
        "noise_edge", "noise edge", "t √(μ_TW + 2.02 σ_TW) ≈ t (√m + √n)",
        "Johnstone, Ann. Statist. 29(2), 2001; Marchenko and Pastur 1967",
        "Noise with this bulk stays below it in 99 of 100 matrices, whatever their shape.", log=True,
    ),
    Definition("outliers", "values above the noise edge", "#{s > edge}", "see noise edge", "A count.", log=True),
    Definition(
        "outlier_strength", "s₁ over the noise edge", "s₁ / edge", "see noise edge",
        "How far the strongest direction stands out; at most about 1 for noise.", log=True,
    ),
    Definition("alpha_error", "standard error of α", "(α − 1) / √n_tail", _WEIGHTWATCHER, "Of the fit, given λ_min."),
    Definition("alpha_distance", "KS distance of α", "max |F_fit − F_data|", _WEIGHTWATCHER, "Large: not a power law."),
    Definition("alpha_tail", "values in the tail", "n_tail = #{λ ≥ λ_min}", _WEIGHTWATCHER,
               "Below about 50 α means little.", log=True),
    Definition(
        "spectrum_snr", "Spectrum's SNR", "Σ_{s > τ} s / Σ_{s ≤ τ} s / s₁,  τ = IQR(s)/1.349 · (1 + √(m/n))",
        "Spectrum, arXiv 2406.06623, and its code",
        "Biased by shape: τ takes the spread of the singular values for that of the elements, so it calls 24 % of a "
        "square noise matrix and 100 % of a 1 : 4 noise matrix signal. Do not compare it across shapes; use the noise "
        "edge. Empty where nothing lies below τ.", log=True,
    ),
    Definition(
        "relative_change", "relative change", "‖ΔW‖_F / ‖W‖_F", "definition",
        "The size of the change, comparable between Q and V and between layers.", "change",
    ),
    Definition(
        "delta_norm", "‖ΔW‖_F, not normalised", "‖W′ − W‖_F", "AILoRA, arXiv 2510.08034",
        "The view of the paper. Alone it can mislead: a larger matrix, or one with larger weights, has a larger norm "
        "at the same relative change.", "change", log=True,
    ),
    Definition(
        "delta_rms", "change per element", "‖ΔW‖_F / √(mn)", "definition", "Root mean square.", "change", log=True,
    ),
    Definition("delta_spectral_norm", "‖ΔW‖₂", "s₁(ΔW)", "definition", "Its strongest direction.", "change", log=True),
    Definition(
        "delta_effective_rank", "effective rank of ΔW", "exp(−Σ p log p), p = s² / Σ s² of ΔW", _ENTROPY,
        "In directions.", "change", log=True,
    ),
    Definition("delta_effective_rank_share", "effective rank of ΔW / k", "as above, over k", _ENTROPY,
               "About 0.6 for square noise.", "change"),
    Definition("delta_stable_rank", "stable rank of ΔW", "Σ s² / s₁² of ΔW", "Rudelson and Vershynin 2007",
               "In directions.", "change", log=True),
    Definition("delta_rank_90", "rank for 90 % of ΔW", "min r : Σ₁ʳ s² ≥ 0.9 Σ s² of ΔW", "energy criterion",
               "The adapter rank that would have held 90 % of the change.", "change", log=True),
    Definition(
        "delta_above", "values of ΔW above its noise edge", "#{s(ΔW) > 1.05 rms(ΔW) (√m + √n)}",
        "Marchenko and Pastur 1967; 5 % for finite size",
        "Directions that a change without structure would not have. A change of rank above about k/4 hides itself.",
        "change", log=True,
    ),
    Definition("delta_above_energy", "energy of ΔW above its noise edge", "Σ_{s > edge} s² / Σ s² of ΔW",
               "see above", "Near 1: the change is of that low rank.", "change"),
    Definition("delta_edge", "noise edge of ΔW", "1.05 rms(ΔW) (√m + √n)", "Marchenko and Pastur 1967", "", "change",
               log=True),
    Definition(
        "rounding_above", "values of ΔW above the rounding edge", "#{s(ΔW) > 1.05 rms(ulp/√12) (√m + √n)}",
        "uniform rounding error",
        "Directions beyond what storing the tuned matrix in its type does. 0: the change cannot be told from rounding.",
        "change", log=True,
    ),
    Definition("rounding_edge", "rounding edge", "1.05 rms(ulp/√12) (√m + √n)", "uniform rounding error", "", "change",
               log=True),
    Definition("rounding_rms", "rms of rounding", "√mean(ulp²/12)", "uniform rounding error",
               "Of the tuned matrix as it is stored.", "change", log=True),
    Definition("changed", "elements that differ", "#{W′ ≠ W} / mn", "definition", "As a share.", "change"),
    Definition("scale", "best rescaling", "c = ⟨W′, W⟩ / ⟨W, W⟩", "least squares", "1: no overall growth.", "change"),
    Definition("rescaled_change", "change left after rescaling", "‖W′ − cW‖_F / ‖W‖_F", "least squares",
               "Near 0 with c ≠ 1: the matrix was only multiplied by c.", "change"),
)  # fmt: skip

BY_KEY = {row.key: row for row in DEFINITIONS}

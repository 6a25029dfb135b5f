"""`analyze` as a verb: files and schema, bad input, interruption, adapters as the tuned side, ranks, the page."""

from __future__ import annotations

import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from click.testing import CliRunner, Result
from kit.checkpoints import llama_tensors, tree, write_checkpoint
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ailora_tools import AiloraError, analyze, initialize, render_report
from ailora_tools.cli.group import main
from ailora_tools.metrics.definitions import DEFINITIONS
from ailora_tools.metrics.motion import motions
from ailora_tools.output.analysis import read_analysis, schema
from ailora_tools.report.packed import unpacked
from ailora_tools.report.page import render
from ailora_tools.report.words import number, percent, ranges, spread, typeset


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(
        tmp_path / "model", llama_tensors(layers=3), shards=2, num_attention_heads=8, num_key_value_heads=4
    )


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    tensors = llama_tensors(layers=3)
    tensors = {name: value + 0.01 * torch.randn_like(value) for name, value in tensors.items()}
    return write_checkpoint(tmp_path / "tuned", tensors)


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("created", "seconds")}


def test_motion_from_the_spectrum_is_that_of_the_adapters(model: Path, tmp_path: Path) -> None:
    """What the report expects of AILoRA's adapters is what `init` then measures on the factors that it stored."""
    document = analyze(model, output=tmp_path / "report", rank=4).document
    expected = next(finding["numbers"] for finding in document["findings"] if finding["id"] == "motion")
    manifest = initialize(model, 4, output=tmp_path / "out").manifest
    assert manifest is not None
    for row in document["matrices"]:
        found = next(record.motion for record in manifest.modules if record.tensor == row["tensor"])
        S = np.asarray(row["spectrum"]["singular_values"])
        part = {"q": "top", "v": "bottom"}[row["role"]]
        assert motions(S, [4], tuple(row["shape"]))[part] == pytest.approx([found], rel=1e-5)
    roles = json.loads((tmp_path / "out" / "lr_groups.json").read_text())["roles"]
    for role in "qv":
        assert expected[f"{role}_motion"] == pytest.approx(roles[role]["motion"], rel=1e-5)


def test_a_zero_matrix_does_not_move(tmp_path: Path) -> None:
    tensors = llama_tensors()
    zero = {name: value * (0 if "v_proj" in name else 1) for name, value in tensors.items()}
    result = analyze(write_checkpoint(tmp_path / "model", zero), output=tmp_path / "out")
    assert "motion" not in {finding["id"] for finding in result.document["findings"]}
    ranks = unpacked((tmp_path / "out" / "report.html").read_text())["ranks"]
    assert {row["texts"]["motion-range"] for row in ranks} == {"a matrix that is zero does not move"}


def test_the_files_and_their_schema(model: Path, tuned: Path, tmp_path: Path) -> None:
    source = tree(model)
    result = analyze(model, against=[tuned, tuned], output=tmp_path / "out", heads=True, suggest_ranks=4, roles="qkvo")
    assert sorted(tree(tmp_path / "out")) == ["analysis.json", "metrics.csv", "ranks.json", "report.html"]
    assert tree(model) == source
    written = read_analysis(tmp_path / "out")
    assert written == json.loads(json.dumps(result.document))
    jsonschema.validate(written, schema())
    keys = {kind: {row.key for row in DEFINITIONS if row.of == kind} for kind in ("matrix", "change")}
    row = written["matrices"][0]
    assert set(row["metrics"]) == keys["matrix"] and set(row["changes"][1]["metrics"]) == keys["change"]
    assert [row["label"] for row in written["matrices"][:5]] == ["q 0", "k 0", "v 0", "o 0", "q 1"]
    assert [len(row["heads"]) for row in written["matrices"][:4]] == [8, 4, 4, 8]
    lines = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open(encoding="utf-8")))
    assert len(lines) == 12 * 3 and float(lines[0]["spectral_norm"]) == row["metrics"]["spectral_norm"]


def test_layers_are_in_natural_order(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", llama_tensors(layers=12, hidden=16, kv=8), shards=3)
    rows = analyze(model, output=tmp_path / "out", rank=4).document["matrices"]
    assert [row["layer"] for row in rows if row["role"] == "v"] == list(range(12))


def test_an_interrupted_run_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ailora_tools.analysis import measuring
    from ailora_tools.checkpoint.files import LocalFiles

    whole = analyze(model, output=tmp_path / "whole").document
    real, count = measuring.put_together, [0]

    def interrupted(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] > 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "put_together", interrupted)
        with pytest.raises(KeyboardInterrupt):
            analyze(model, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(AiloraError, match="unfinished"):
        analyze(model, output=tmp_path / "out")
    with pytest.raises(AiloraError, match="differs in rank"):
        analyze(model, output=tmp_path / "out", rank=3, resume=True)
    reads = []
    read = LocalFiles.read

    def counted(self: LocalFiles, name: str, start: int, stop: int) -> bytearray:
        reads.append((name, start))
        return read(self, name, start, stop)

    monkeypatch.setattr(LocalFiles, "read", counted)
    again = analyze(model, output=tmp_path / "out", resume=True).document
    assert without_times(again) == without_times(whole)
    weights = [place for place in reads if place[0].endswith(".safetensors") and place[1] > 0]
    assert len(weights) <= 6 - 3


def test_an_old_analysis_is_replaced_only_when_asked(model: Path, tmp_path: Path) -> None:
    analyze(model, output=tmp_path / "out")
    with pytest.raises(AiloraError, match="already exists"):
        analyze(model, output=tmp_path / "out")
    analyze(model, output=tmp_path / "out", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(AiloraError, match="not written by"):
        analyze(model, output=tmp_path / "mine", overwrite=True)
    with pytest.raises(AiloraError, match="inside the source"):
        analyze(model, output=model / "report")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"layers": 2}, "it lacks q 2, v 2"),
        ({"layers": 4}, "it has q 3, v 3 besides"),
        ({"layers": 3, "hidden": 40}, "6 shapes differ"),
    ],
)
def test_what_is_no_fine_tune_is_refused(model: Path, tmp_path: Path, sizes: dict[str, int], words: str) -> None:
    other = write_checkpoint(tmp_path / "other", llama_tensors(**sizes))
    with pytest.raises(AiloraError) as caught:
        analyze(model, against=[other], output=tmp_path / "out")
    assert words in str(caught.value) and not list(tmp_path.glob("out*"))


def test_another_architecture_is_refused(model: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", llama_tensors(layers=3), model_type="mistral")
    with pytest.raises(AiloraError, match="is a mistral model"):
        analyze(model, against=[other], output=tmp_path / "out")


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--rank", "0"], "rank 0 does not fit"),
        (["--rank", "25"], "rank 25 does not fit"),
        (["--suggest-ranks", "many"], "neither an average rank"),
        (["--suggest-ranks", "3k"], "rank 1 everywhere takes"),
        (["--suggest-ranks", "99"], "full rank"),
        (["--against", "nowhere"], "no such file or folder"),
        (["--layers", "7"], "there is no layer 7"),
    ],
)
def test_bad_options_cost_a_message_and_nothing_else(
    model: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    if words == "rank 1 everywhere takes":
        arguments = ["--suggest-ranks", "0.1k"]
    done = cli("analyze", model, "-o", tmp_path / "out", *arguments)
    assert done.exit_code == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*")) and done.stdout == ""


def test_nan_is_named_the_rest_is_reported_and_the_exit_code_is_1(tmp_path: Path) -> None:
    tensors = llama_tensors(layers=2)
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 4] = float("inf")
    model = write_checkpoint(tmp_path / "m", tensors)
    done = cli("analyze", model, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 1 and "1 of 1,152 values are NaN or infinite, the first at [3, 4]" in done.stderr
    document = json.loads(done.stdout)
    assert [row["label"] for row in document["skipped"]] == ["v 1"] and len(document["matrices"]) == 3
    jsonschema.validate(read_analysis(tmp_path / "out"), schema())
    for name in tensors:
        tensors[name] = torch.full_like(tensors[name], float("nan"))
    done = cli("analyze", write_checkpoint(tmp_path / "n", tensors), "-o", tmp_path / "none")
    assert done.exit_code == 1 and "None of the 4 matrices" in done.stderr and not list(tmp_path.glob("none*"))


def test_the_terminal_and_json(model: Path, tmp_path: Path) -> None:
    done = cli("analyze", model, "-o", tmp_path / "a")
    assert done.exit_code == 0 and "effective rank / k" in done.stdout and "█" in done.stdout
    assert done.stdout.rstrip().endswith("report.html")
    done = cli("analyze", model, "-o", tmp_path / "b", "--json")
    document = json.loads(done.stdout)
    assert document.pop("folder") == str(tmp_path / "b")
    assert document.pop("traffic") is None
    jsonschema.validate(document, schema())


def llama(tmp_path: Path) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=40,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    return model


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_the_change_that_merging_it_makes(tmp_path: Path, rslora: bool, dora: bool) -> None:
    model = llama(tmp_path)
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "up_proj"], use_rslora=rslora, use_dora=dora,
        init_lora_weights=False, rank_pattern={"layers.1.self_attn.q_proj": 3}, alpha_pattern={"v_proj": 5},
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    ours, theirs = (
        analyze(tmp_path / "base", against=[tmp_path / other], output=tmp_path / f"out-{other}").document
        for other in ("adapter", "merged")
    )
    assert ours["against"][0]["kind"] == "adapter" and any("2 other modules" in text for text in ours["notices"])
    for one, two in zip(ours["matrices"], theirs["matrices"], strict=True):
        first, second = one["changes"][0], two["changes"][0]
        for key in ("relative_change", "delta_norm", "delta_spectral_norm", "delta_effective_rank", "scale"):
            assert first["metrics"][key] == pytest.approx(second["metrics"][key], rel=1e-4), key
        assert first["placement"]["top_block"] == pytest.approx(second["placement"]["top_block"], rel=1e-3, abs=1e-6)
        if not dora:
            rank = 3 if one["label"] == "q 1" else 4
            assert len(first["delta_singular_values"]) == rank
    jsonschema.validate(ours, schema())


def test_adapters_that_cannot_be_compared(tmp_path: Path) -> None:
    model = llama(tmp_path)
    get_peft_model(model, LoraConfig(r=4, target_modules=["up_proj"])).save_pretrained(tmp_path / "mlp")
    with pytest.raises(AiloraError, match="none of its 2 adapted modules"):
        analyze(tmp_path / "base", against=[tmp_path / "mlp"], output=tmp_path / "out")
    config = json.loads((tmp_path / "mlp" / "adapter_config.json").read_text())
    (tmp_path / "mlp" / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(AiloraError, match="only LORA"):
        analyze(tmp_path / "base", against=[tmp_path / "mlp"], output=tmp_path / "out")


def test_suggested_ranks_follow_their_rule(model: Path, tuned: Path, tmp_path: Path) -> None:
    """No swap of one direction between two matrices of equal cost would hold more."""
    for against in ((), (tuned,)):
        out = tmp_path / f"out{len(against)}"
        document = analyze(model, against=against, output=out, suggest_ranks="5").document
        ranks = json.loads((out / "ranks.json").read_text())
        assert ranks == document["ranks"] and ranks["basis"] == ("change" if against else "weights")
        told = [*document["notices"], ranks["rule"], (out / "report.html").read_text()]
        unproven = "has not been shown to predict the rank that training needs"
        assert [unproven in text for text in told] == [not against] * len(told), "only where it goes by the spectrum"
        costs = {row["module"]: sum(row["shape"]) for row in document["matrices"]}
        spent = sum(costs[module] * rank for module, rank in ranks["rank_pattern"].items())
        assert spent == ranks["parameters"] <= ranks["budget"] < spent + min(costs.values())
        assert set(ranks["rank_pattern"]) == set(costs) and ranks["alpha_pattern"] == ranks["rank_pattern"]
        gains = {}
        for row in document["matrices"]:
            S = row["changes"][0]["delta_singular_values"] if against else row["spectrum"]["singular_values"]
            gains[row["module"]] = [value**2 / sum(each**2 for each in S) for value in S]
        for one, first in ranks["rank_pattern"].items():
            for two, second in ranks["rank_pattern"].items():
                if costs[one] == costs[two] and second > 1 and first < len(gains[one]):
                    assert gains[one][first] <= gains[two][second - 1] + 1e-12


def test_a_budget_in_parameters(model: Path, tmp_path: Path) -> None:
    ranks = analyze(model, output=tmp_path / "out", suggest_ranks="2k").document["ranks"]
    assert ranks["budget"] == 2000 and ranks["parameters"] <= 2000


HOSTILE = '</script><img src=x onerror="document.title=1">'


class Tags(HTMLParser):
    """Counts start tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    tensors = {}
    for layer in range(4):
        for role in "qv":
            tensors[f"{HOSTILE}.{layer}.{role}_proj.weight"] = torch.randn(8, 8)
    model = write_checkpoint(tmp_path / "a <b> & c", tensors, model_type="<i>odd</i>")
    result = analyze(model, output=tmp_path / "out", rank=2)
    page = result.report.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert "img" not in tags.found and "i" not in tags.found and tags.found.count("script") == 3
    assert HOSTILE not in page and page.count("</script>") == 3
    assert next(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))["tensor"].startswith("</script>")


def test_csv_is_no_formula(tmp_path: Path) -> None:
    tensors = {f"=cmd.{layer}.{role}_proj.weight": torch.randn(8, 8) for layer in range(2) for role in "qv"}
    analyze(write_checkpoint(tmp_path / "m", tensors, model_type="odd"), output=tmp_path / "out", rank=2)
    lines = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert all(line["tensor"].startswith("'=cmd") for line in lines)


def test_plotly_accepts_every_figure(model: Path, tuned: Path, tmp_path: Path) -> None:
    asked = {"suggest_ranks": 4, "suggest_targets": 3}
    result = analyze(model, against=[tuned, model], output=tmp_path / "out", heads=True, roles="qkvo", **asked)
    data = unpacked(result.report.read_text(encoding="utf-8"))
    assert len(data["figures"]) > 30
    for name, figure in data["figures"].items():
        go.Figure(figure)  # raises ValueError for what plotly does not know
        assert figure["data"], name
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"] or (name.startswith("map-") and axis == "yaxis"), name
    assert data["csv"] == (tmp_path / "out" / "metrics.csv").read_text(encoding="utf-8")
    assert data["document"] == read_analysis(tmp_path / "out")


def test_a_model_of_80_layers_stays_small(tmp_path: Path) -> None:
    """Shapes of a 70B model at an eighth: grouped queries, 80 layers."""
    tensors = {}
    generator = torch.Generator().manual_seed(0)
    for layer in range(80):
        for name, rows in (("q_proj", 256), ("v_proj", 32)):
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = torch.randn(rows, 256, generator=generator)
    model = write_checkpoint(tmp_path / "m", tensors)
    other = write_checkpoint(tmp_path / "t", {name: W + 0.01 * W.roll(1) for name, W in tensors.items()})
    result = analyze(model, against=[other], output=tmp_path / "out")
    assert result.report.stat().st_size < 8e6
    data = unpacked(result.report.read_text(encoding="utf-8"))
    assert len(data["document"]["matrices"]) == 160 and "thinned" in data["document"]
    jsonschema.validate(data["document"], schema())


def test_the_report_again(model: Path, tmp_path: Path) -> None:
    result = analyze(model, output=tmp_path / "out")
    page = result.report.read_text(encoding="utf-8")
    result.report.unlink()
    done = cli("report", tmp_path / "out" / "analysis.json")
    assert done.exit_code == 0 and result.report.read_text(encoding="utf-8") == page == render(result.document)
    assert render_report(tmp_path / "out", tmp_path / "elsewhere.html").read_text(encoding="utf-8") == page
    shutil.copy(model / "config.json", tmp_path / "config.json")
    for bad, words in ((tmp_path / "config.json", "format and version"), (tmp_path / "none.json", "No such file")):
        done = cli("report", bad)
        assert done.exit_code == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_words() -> None:
    assert [number(value) for value in (0, 1, 12345, 123456, 0.00012, 0.25, -3.14159)] == [
        "0", "1", "12345", "1.23e+05", "1.20e-04", "0.25", "-3.14",
    ]  # fmt: skip
    assert percent(0.1234) == "12.3 %" and ranges([5, 0, 1, 2]) == "0-2, 5"
    assert spread([1.0, 2.0, 9.0]) == "2 (1 to 9)" and spread([3.0, 3.0]) == "3"
    assert typeset("<W^Q> & W^Vx") == "&lt;W<sup>Q</sup>&gt; &amp; W^Vx"

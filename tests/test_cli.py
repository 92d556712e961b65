"""The commands, called as a user calls them, on a small network with its own data."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from helpers.compiled_ops import ensure_torchvision
from secateur import _report, _store
from secateur._couple import couple
from secateur._score import calibrate, score
from secateur._surgery import fingerprint_weights
from secateur._trace import trace
from secateur.cli import app
from secateur.cli._members import chained, member
from secateur.cli._shell import guarded, panel
from secateur.criteria import obd
from secateur.errors import InputError, OneShotIterable, SecateurError, UnknownName
from secateur.integrations import names
from secateur.recoveries import RECOVERIES, chain, finetune
from secateur.schema import from_json
from secateur.schema.comparison import Comparison
from secateur.schema.curves import Curves
from secateur.schema.groups import Groups
from secateur.schema.plan import Plan
from secateur.schema.scores import Scores
from secateur.tasks import classification

PROJECT = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 24)
        self.second = nn.Linear(24, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


def make(seed, n):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return list(zip(x.split(50), x[:, :3].argmax(1).split(50)))


def net():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for epoch in range(25):
        for x, y in make(1, 400):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def data():
    return {"train": make(1, 400), "search": make(2, 200), "held_out": make(3, 500)}


def more_data():
    return data() | {"search": make(2, 2000)}


def small():
    return {"train": make(1, 100), "search": make(2, 100)}


def one_batch():
    return make(2, 50)


def left():
    return {"train": make(1, 400), "search": make(2, 200)[:1], "held_out": make(3, 500)}


def right():
    return {"train": make(1, 400), "search": make(2, 200)[1:], "held_out": make(3, 500)}


def easy_first():
    x, y = (torch.cat(column) for column in zip(*make(2, 500)))
    best = x[:, :3].topk(2).values
    order = (best[:, 1] - best[:, 0]).argsort()
    return {"train": make(1, 400), "search": list(zip(x[order].split(50), y[order].split(50)))}


def two():
    return make(1, 100), make(2, 100)


def generator():
    return (batch for batch in make(1, 100))


def one_input():
    return torch.zeros(2, 8)


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out, self.more = nn.Linear(8, 10), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        a, b = self.first(x).chunk(2, -1)
        return self.out(a) + self.more(torch.sigmoid(b))


def square():
    model = Net()
    model.second, model.out = nn.Linear(24, 24), nn.Linear(24, 3)
    return model


def halves():
    return Halves()


@torch.library.custom_op("mine::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Custom(Net):
    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.ops.mine.double(self.first(x)))))


def custom():
    return Custom()


RULES = OTHER_RULES = {"mine::double": lambda k, op: k.pointwise(op.shape, [op.args[0]])}


def interrupted():
    raise KeyboardInterrupt


NUMBER = 3
"""
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A file `tiny_project.py`, named by its path."""
    path = tmp_path_factory.mktemp("project") / "tiny_project.py"
    path.write_text(PROJECT)
    return path


def call(*words: object, code: int = 0) -> str:
    done = RUNNER.invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == code, f"{done.exit_code}\n{done.output}\n{done.stderr}"
    return done.stdout if code == 0 else done.output


@pytest.fixture(scope="module")
def model(project: Path) -> tuple[object, ...]:
    return f"{project}:net", "--data", f"{project}:data"


def test_trace_lists_what_can_be_removed_and_why_the_rest_cannot(model):
    text = call("trace", *model)
    assert "24 neurons" in text
    assert "16 neurons" in text
    assert "it is an output of the model" in text


def test_trace_as_json_is_the_groups_that_couple_finds(model, project):
    groups = from_json(Groups, json.loads(call("trace", *model, "--json"))["groups"])
    named = names.model(f"{project}:net")
    assert groups == couple(trace(named.model, torch.zeros(2, 8)))


@pytest.mark.parametrize("inputs", [("--shape", "2x8"), ("--inputs", "FILE:one_input"), ("--data", "FILE:two")])
def test_example_inputs_can_be_named_in_three_ways(project, inputs):
    option, value = inputs
    assert "24 neurons" in call("trace", f"{project}:net", option, value.replace("FILE", str(project)))


def test_trace_draws_a_page_and_shows_parameters_macs_and_equations(project, tmp_path: Path):
    page = tmp_path / "groups.html"
    text = " ".join(call("trace", f"{project}:halves", "--shape", "2x8", "--html", page).split())
    assert "60 parameters" in text, "five rows of nine, and a column of three for each"
    assert "numbers that must fit" in text
    assert "#1" in text
    assert page.read_text().startswith("<!doctype html>")
    told = json.loads(call("trace", f"{project}:halves", "--shape", "2x8", "--json"))
    assert len(told["carried"]) == len(told["groups"]["groups"])


def test_two_parameters_can_be_tied_by_name(model):
    free = json.loads(call("trace", *model, "--json"))["groups"]
    words = ("trace", model[0].replace(":net", ":square"), "--shape", "2x8", "--json")
    tied = json.loads(call(*words, "--tie", "first.weight = second.weight"))["groups"]
    apart = json.loads(call(*words))["groups"]
    assert [len(g["groups"]) for g in (free, apart, tied)] == [2, 2, 1]
    assert "first.weight=second.weight" in call(*words, "--tie", "first.weight", code=3)
    assert "no parameter of that name" in call(*words, "--tie", "first.weight=third.weight", code=3)


def test_rules_for_operations_of_the_user_are_read_from_a_module(project):
    words = ("trace", f"{project}:custom", "--shape", "2x8")
    assert "no rule for mine.double.default" in call(*words)
    text = call(*words, "--rules", f"{project}")
    assert "no rule" not in text
    assert "24 neurons" in text
    assert call(*words, "--rules", f"{project}:OTHER_RULES") == text
    assert "no table of op rules" in call(*words, "--rules", f"{project}:net", code=3)


def test_without_example_inputs_it_says_how_to_give_them(project):
    assert "--shape" in call("trace", f"{project}:net", code=3)


def test_score_scan_plan_cut_hand_their_nouns_on_through_the_folder(model, tmp_path: Path):
    scores = from_json(Scores, json.loads(call("score", *model, "--out", tmp_path, "--json")))
    assert [len(v) for v in scores.values] == [24, 16]
    assert "±" in call("scan", *model, "--folds", 2, "--out", tmp_path)
    assert "MACs" in call("plan", *model, "--macs", 0.5, "--out", tmp_path)
    plan = from_json(Plan, json.loads(call("plan", *model, "--macs", 0.5, "--out", tmp_path, "--json")))
    assert plan.after is not None
    assert plan.before is not None
    assert plan.after.macs <= 0.5 * plan.before.macs
    assert "Verified against the masked model" in call("cut", *model, "--out", tmp_path)

    told = json.loads(call("export", *model, "--out", tmp_path, "--to", tmp_path / "m.onnx", "--json"))
    assert told["error"] < 1e-4
    assert "speed-up" in call("bench", *model, "--out", tmp_path, "--repeats", 6, "--batch", 2)
    # hardly any drop is allowed: not certifiable, and what was measured is written down all the same
    text = call("certify", *model, "--max-drop", 0.0001, "--out", tmp_path, code=4)
    assert "Not certifiable" in text
    assert (tmp_path / "certificate.json").exists()


def test_what_was_made_for_another_model_is_refused(model, tmp_path: Path, project):
    call("score", *model, "--out", tmp_path)
    other = project.with_name("other_project.py")
    other.write_text(PROJECT.replace("24", "20"))
    text = call("plan", f"{other}:net", "--data", f"{other}:data", "--macs", 0.5, "--out", tmp_path, code=3)
    assert "made for another model" in text


def test_prune_does_all_of_it_and_report_writes_the_page_again(model, tmp_path: Path):
    words = ("prune", *model, "--macs", 0.6, "--max-drop", 0.2, "--steps", 2, "--out", tmp_path)
    recovery = ("--recovery", "finetune(epochs=2, lr=1e-2)")
    text = call(*words, *recovery)
    assert "report.html" in text.replace("\n", "")
    assert "Certified" in text
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    call("report", tmp_path)
    assert (tmp_path / "report.html").read_text() == page
    again = json.loads(call(*words, *recovery, "--resume", "--json"))
    assert again == json.loads(call("report", tmp_path, "--json"))
    assert "another" in call(*words, *recovery, "--seed", 5, "--resume", code=3)
    assert "--resume" in call(*words, *recovery, code=3) or "resume" in call(*words, *recovery, code=3)


def test_a_toml_file_can_hold_the_options(model, tmp_path: Path):
    config = tmp_path / "run.toml"
    config.write_text("seed = 3\n[plan]\nmacs = 0.5\nround-to = 4\n")
    plan = from_json(Plan, json.loads(call("plan", *model, "--config", config, "--json")))
    assert all(len(kept) % 4 == 0 for kept in plan.kept)
    config.write_text("[plan]\nmax = 0.5\n")
    assert "no option max" in call("plan", *model, "--config", config, code=2).replace("\n", " ")


def test_an_error_says_what_to_do_and_ends_with_three(model):
    text = call("plan", *model, "--macs", 0.001, code=3)
    assert "BudgetUnreachable" in text


def curves_in(folder: Path) -> Curves:
    return from_json(Curves, _store.read_json(folder / "curves.json"))


def test_sorted_data_are_scanned_in_full_or_not_at_all(project, tmp_path: Path):
    words = ("scan", f"{project}:net", "--removed", 0.1, "--removed", 0.9, "--data")
    said = " ".join(call(*words, f"{project}:easy_first", "--out", tmp_path / "no", code=3).split())
    assert "shuffle the search data" in said
    assert "--full" in said
    call(*words, f"{project}:easy_first", "--full", "--out", tmp_path / "full")
    n = {p.removed: sum(q.n for q in curves_in(tmp_path / "full").points if q.removed == p.removed) for p in
         curves_in(tmp_path / "full").points}  # fmt: skip
    assert n == {0.1: 1000, 0.9: 1000}


def test_parts_of_a_scan_from_several_machines_merge_into_the_whole_one(project, tmp_path: Path):
    words = (f"{project}:net", "--data", f"{project}:small", "--removed", 0.3, "--removed", 0.6, "--folds", 2)
    call("scan", *words, "--out", tmp_path / "whole")
    first, second = json.loads((tmp_path / "whole" / "curves.json").read_text())["names"]
    call("scan", *words, "--only", first, "--out", tmp_path / "a")
    call("scan", *words, "--only", second, "--executor", "processes(n=2)", "--out", tmp_path / "b")
    said = call(
        "scan", "--merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "ab", "--plot", tmp_path / "plots"
    )
    assert first in said
    assert curves_in(tmp_path / "ab") == curves_in(tmp_path / "whole")
    assert (tmp_path / "plots" / "curves.svg").exists()
    # the merged store is one that a scan goes on from: nothing is left to measure, and nothing changes
    call("scan", *words, "--out", tmp_path / "ab", "--resume")
    assert curves_in(tmp_path / "ab") == curves_in(tmp_path / "whole")
    lines = [sorted((tmp_path / name / "scan.jsonl").read_bytes().splitlines()) for name in ("ab", "whole")]
    assert lines[0] == lines[1]

    # a part that was killed has no curves yet; its measurements are kept all the same
    (tmp_path / "b" / "curves.json").unlink()
    assert "--resume" in call("scan", "--merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "open")
    assert not (tmp_path / "open" / "curves.json").exists()

    # what belongs to something else is refused by its name
    call("scan", *words[:-1], 4, "--only", second, "--out", tmp_path / "other")
    said = call("scan", "--merge", tmp_path / "a", tmp_path / "other", "--out", tmp_path / "no", code=3)
    assert "n_folds" in said
    assert "other" in said.replace("\n", "")
    assert not (tmp_path / "no").exists() or not (tmp_path / "no" / "curves.json").exists()
    assert "no scan" in call("scan", "--merge", tmp_path / "a", tmp_path, "--out", tmp_path / "no2", code=3)
    assert "already holds" in call("scan", "--merge", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "ab", code=3)
    call("scan", *words[:1], "second:net", "--out", tmp_path / "x", code=2)


def test_scores_are_compared_with_leave_one_out_beside_the_usual_four(project, tmp_path: Path):
    words = ("score", f"{project}:net", "--data", f"{project}:data", "--compare", "--units", 12)
    said = call(*words, "--criterion", "obd, magnitude(p=1)", "--out", tmp_path)
    made = from_json(Comparison, _store.read_json(tmp_path / "comparison.json"))
    assert list(made.predicted) == ["obd", "magnitude_l1", "random", "magnitude_l2", "absolute_taylor"]
    for name in made.predicted:
        assert name in said
    assert _report.ceiling_in_words(made) in " ".join(said.split())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("comparison.json", "comparison.html", "against.png", "against.svg", "correlations.png", "correlations.svg")
    }
    # scores come from the first and third batch, the measurement from the others
    named, data = names.model(f"{project}:net"), names.data(f"{project}:data")
    groups = couple(trace(named.model, torch.zeros(2, 8)))
    expected = score(named.model, groups, data.search[::2], classification(), criterion=obd())
    assert made.predicted["obd"] == tuple(expected.values[g][u] for g, u in made.units)
    assert made.n_examples == sum(len(batch[1]) for batch in data.search[1::2]) == 100


def test_criteria_that_cannot_serve_are_named_not_silently_dropped(project):
    said = call(
        *(
            "score",
            f"{project}:net",
            "--data",
            f"{project}:data",
            "--compare",
            "--units",
            4,
            "--criterion",
            "bn_scale,obd",
        )
    )
    assert "bn_scale is left out" in said.replace("\n", " ")


def test_a_comparison_needs_two_batches(project):
    words = ("score", f"{project}:net", "--data", f"{project}:one_batch", "--compare", "--json")
    assert "smaller batches" in call(*words, code=3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere.py:net",), "no such file"),
        (("no_such_package_at_all:net",), "no module"),
        (("FILE:nothing",), "nothing"),
        (("FILE:NUMBER",), "nn.Module"),
        (("plain",), "names no model"),
        (("timm:no_such_net_9",), "timm has no such model"),
        (("torchvision:resnet19",), "torchvision has no such model"),
    ],
)
def test_names_that_lead_nowhere_are_refused_in_words(project, words, says):
    ensure_torchvision()
    assert says in call("trace", *(w.replace("FILE", str(project)) for w in words), code=3).replace("\n", " ")


def test_a_generator_as_data_is_refused(project):
    with pytest.raises(OneShotIterable):
        names.data(f"{project}:generator")


def test_two_loaders_are_train_and_search(project):
    found = names.data(f"{project}:two")
    assert len(found.train) == len(found.search) == 2
    assert found.held_out is None


def test_a_model_of_torchvision_knows_its_inputs():
    ensure_torchvision()
    named = names.model("torchvision:squeezenet1_1", weights=False)
    assert isinstance(named.model, nn.Module)
    assert named.example_inputs.shape == (2, 3, 224, 224)


def test_a_model_of_timm_knows_its_inputs():
    ensure_torchvision()
    named = names.model("timm:test_vit", weights=False)
    assert named.example_inputs.shape[1:] == named.model.default_cfg["input_size"]


def test_a_hugging_face_folder_is_loaded_with_its_weights(tmp_path: Path):
    ensure_torchvision()
    import transformers

    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    made = transformers.BertForSequenceClassification(config).eval()
    made.save_pretrained(tmp_path)
    named = names.model(str(tmp_path))
    assert fingerprint_weights(named.model) == fingerprint_weights(made)
    assert "input_ids" in named.example_inputs


def test_members_are_read_with_their_settings():
    assert member("finetune(epochs=5, lr=1e-2)", RECOVERIES, what="recovery") == finetune(epochs=5, lr=1e-2)
    assert chained("finetune+recalibrate", RECOVERIES, chain, what="recovery").name == "finetune + recalibrate"
    with pytest.raises(UnknownName, match="finetune"):
        member("magic", RECOVERIES, what="recovery")
    for wrong in ("finetune(5)", "finetune(epochs=len)", "finetune(epochs=5", "finetune(colour=1)"):
        with pytest.raises(InputError):
            member(wrong, RECOVERIES, what="recovery")


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(project, tmp_path: Path):
    text = call("score", f"{project}:interrupted", "--shape", "2x8", "--out", tmp_path, code=130)
    assert "--resume" in text


def test_a_bug_is_not_dressed_up_as_a_refusal():
    @guarded
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()


def test_the_panel_shows_every_part_of_an_error_even_with_brackets_in_it():
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(panel(SecateurError("no [bold] here", where="a[0]", expected="[x]", got="y", todo="do z")))
    text = console.export_text()
    for part in ("no [bold] here", "a[0]", "[x]", "y", "do z"):
        assert part in text


def test_every_command_has_help_with_its_options():
    commands = [c.name for c in app.registered_commands]
    assert commands == [
        *("demo", "trace", "score", "scan", "plan", "cut", "prune", "certify", "report", "export", "bench")
    ]
    for name in commands:
        assert "Usage" in call(name, "--help")


def test_prune_without_a_folder_is_wrong_usage(model):
    call("prune", *model, "--macs", 0.5, code=2)


def test_python_dash_m_secateur_is_the_command():
    done = subprocess.run([sys.executable, "-m", "secateur", "--help"], capture_output=True, text=True, check=True)
    assert "prune" in done.stdout


@pytest.mark.slow
def test_a_demo_killed_by_ctrl_c_can_be_resumed(tmp_path: Path):
    words = [sys.executable, "-m", "secateur", "demo", "--arch", "lstm", "--out", str(tmp_path)]
    # a job in the background inherits a SIGINT that is ignored; a person at a terminal does not
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "demo.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    # a shell says 130 for both: exit code 130, and an end by this very signal
    assert process.returncode in (130, -signal.SIGINT), said
    assert "--resume" in said


def test_scores_are_kept_gone_on_from_and_added_up(model, project, tmp_path: Path):
    whole = from_json(Scores, json.loads(call("score", *model, "--json")))
    stores = [tmp_path / "a", tmp_path / "b"]
    for store, part in zip(stores, ("left", "right"), strict=True):
        call("score", model[0], "--data", f"{project}:{part}", "--store", store)
    add = ("--shape", "2x8", "--merge", stores[0], "--merge", stores[1])
    merged = from_json(Scores, json.loads(call("score", model[0], *add, "--json")))
    assert (merged.data, merged.n_examples) == (whole.data, whole.n_examples)
    for a, b in zip(merged.values, whole.values, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-9)
    left = (model[0], "--data", f"{project}:left", "--store", stores[0])
    assert "resume" in call("score", *left, code=3)
    call("score", *left, "--resume")
    assert "--store" in call("score", *model, "--resume", code=2)
    assert "--merge" in call("score", *model, "--merge", stores[0], code=2)


def test_scores_are_scaled_to_what_units_cost_on_the_other_half_of_the_batches(project, tmp_path: Path):
    words = ("score", f"{project}:net", "--data", f"{project}:more_data", "--out", tmp_path)
    call(*words, "--calibrate", 24)
    found = from_json(Scores, _store.read_json(tmp_path / "scores.json"))
    named, data = names.model(f"{project}:net"), names.data(f"{project}:more_data")
    groups = couple(trace(named.model, torch.zeros(2, 8)))
    plain = score(named.model, groups, data.search[::2], classification(), criterion=obd())
    assert found == calibrate(named.model, groups, data.search[1::2], classification(), plain, n_units=24)
    assert found.values != plain.values
    for other in ("--compare", "--merge"):
        given = [tmp_path] if other == "--merge" else []
        assert "--calibrate" in call(*words[:2], *words[2:4] * (not given), other, *given, "--calibrate", 6, code=2)

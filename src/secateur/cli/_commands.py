"""The commands: read names, call the verb of the same name, show what came back.

`score`, `scan`, `plan` and `cut` leave their nouns in `--out` (scores.json, curves.json, plan.json), and each finds
there what the one before it left; what was made for another model is refused.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from secateur import _cost, _export, _latency, _report, _store, pipeline
from secateur._certify import certify as certify_verb
from secateur._certify import explain, verify_certificate
from secateur._couple import couple
from secateur._curves import read
from secateur._cut import cut as cut_verb
from secateur._evaluate import batch_size, map_leaves
from secateur._plan import plan as plan_verb
from secateur._recover import derive, seeded
from secateur._scan import REMOVED
from secateur._scan import scan as scan_verb
from secateur._score import calibrate as calibrate_verb
from secateur._score import merge_scores
from secateur._score import score as score_verb
from secateur._trace import trace as trace_verb
from secateur.allocators import ALLOCATORS
from secateur.cli import _compare, _merge
from secateur.cli import _options as o
from secateur.cli._files import COMPARISON, CURVES, PLAN, REPORT, SCORES, STORE
from secateur.cli._groups import show_groups
from secateur.cli._members import chained, listed, member
from secateur.cli._shell import NOT_CERTIFIED, console, guarded, need_out, progress, say_json
from secateur.cli._verify import candidates, need_certificate
from secateur.criteria import CRITERIA
from secateur.errors import InputError, StaleArtifact, UnknownName
from secateur.executors import EXECUTORS
from secateur.exporters import EXPORTERS
from secateur.integrations import names
from secateur.ops import RULES
from secateur.recoveries import RECOVERIES, chain
from secateur.schedules import SCHEDULES
from secateur.schema import from_json, to_json
from secateur.schema.budget import Budget
from secateur.schema.curves import Curves
from secateur.schema.groups import Groups
from secateur.schema.plan import Plan
from secateur.schema.precision import Precision
from secateur.schema.report import Report
from secateur.schema.scores import Scores
from secateur.schema.task import Data, Task
from secateur.tasks import TASKS

Noun = TypeVar("Noun")


@guarded
def trace(
    model: o.Model,
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    data: o.DataName = None,
    freeze: o.Freeze = None,
    tie: o.Tie = None,
    rules: o.RulesName = None,
    baked: o.Baked = "freeze",
    html: Annotated[Path | None, typer.Option("--html", help="draw it as well, in one HTML file")] = None,
    out: o.Out = None,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Show what can be removed, what cannot, and why."""
    named = names.model(model, weights=False)
    groups = _couple(named, _inputs(named, inputs, shape, data), freeze, tie, rules, baked)
    if out is not None:
        _store.write_json(out / "groups.json", to_json(groups))
    dense, title = _cost.cost(groups.costs, _cost.full_counts(groups)), f"{model}, {type(named.model).__name__}"
    if html is not None:
        _report.draw_groups(groups, title, html)
    if json:
        parts = [to_json(part) for part in _cost.carried(groups)]
        say_json({"groups": to_json(groups), "costs": to_json(dense), "carried": parts})
        return
    show_groups(console(), groups, title)
    if html is not None:
        console().print(f"Drawn in {escape(str(html))}", soft_wrap=True)


@guarded
def score(
    model: o.Model,
    data: o.DataName = None,
    task: o.TaskName = "classification",
    criterion: o.CriterionNames = "obd",
    compare: Annotated[
        bool, typer.Option("--compare", help="hold the criteria against units taken away one at a time")
    ] = False,
    units: Annotated[int, typer.Option("--units", help="with --compare: how many units, spread over the groups")] = 64,
    calibrate: Annotated[
        int, typer.Option("--calibrate", metavar="UNITS", help="scale to what so many units really cost; 32 will do")
    ] = 0,
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    freeze: o.Freeze = None,
    tie: o.Tie = None,
    rules: o.RulesName = None,
    baked: o.Baked = "freeze",
    random_weights: o.RandomWeights = False,
    store: Annotated[Path | None, typer.Option("--store", help="file that keeps what was summed so far")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from what --store holds")] = False,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", help="add up the --store of a part of the data (repeatable)")
    ] = None,
    out: o.Out = None,
    seed: o.Seed = 0,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Predict what each unit is worth, from one pass over the search data; --compare: how well is it predicted?"""
    named = names.model(model, weights=not random_weights)
    if resume and store is None:
        raise typer.BadParameter("--resume needs --store: the file to go on from")
    if merge and (data or store or compare):
        raise typer.BadParameter("--merge adds up what is there: no --data, --store or --compare beside it")
    if store and compare:
        raise typer.BadParameter("--compare measures as well, and writes no --store")
    if calibrate and (compare or merge):
        raise typer.BadParameter("--calibrate goes with scores that are made now: no --compare or --merge beside it")
    groups = _couple(named, _inputs(named, inputs, shape, data), freeze, tie, rules, baked)
    if compare:
        splits = _data(data)
        chosen = listed(criterion, CRITERIA, what="criterion")
        with progress(quiet=json) as tell, seeded(derive(seed, "score"), splits.search):
            compared, missing = _compare.compared(
                named.model, groups, splits.search, _task(task), chosen, n_units=units, seed=seed, progress=tell
            )
        files: tuple[Path, ...] = ()
        if out is not None:
            _store.write_json(out / COMPARISON, to_json(compared))
            files = _report.plot_comparison(compared, out)
        if json:
            say_json(to_json(compared))
        else:
            _compare.show(compared, missing, files)
        return
    if merge:
        found = merge_scores(named.model, groups, merge, criterion=member(criterion, CRITERIA, what="criterion"))
        assert isinstance(found, Scores)
    else:
        splits = _data(data)
        scoring, measuring = _compare.halves(splits.search) if calibrate else (splits.search, None)
        splits = dataclasses.replace(splits, search=scoring)
        found = _score(named.model, groups, splits, task, criterion, seed, json, store=store, resume=resume)
        if measuring is not None:
            with progress(quiet=json) as tell:
                found = calibrate_verb(
                    named.model, groups, measuring, _task(task), found, n_units=calibrate, progress=tell
                )
    if out is not None:
        _store.write_json(out / SCORES, to_json(found))
    if json:
        say_json(to_json(found))
        return
    table = Table("group", "units", "least", "median", "greatest", title=f"{found.criterion} ({found.unit})")
    for group, values in zip(groups.groups, found.values, strict=True):
        ordered = sorted(values)
        cells = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        table.add_row(escape(group.name), str(group.n_units), *(f"{v:.3g}" for v in cells))
    console().print(_numeric(table))


@guarded
def scan(
    model: Annotated[list[str], typer.Argument(metavar="MODEL", help=f"{o.MODEL_HELP}; with --merge: folders")],
    data: o.DataName = None,
    task: o.TaskName = "classification",
    criterion: o.CriterionName = "obd",
    folds: Annotated[int, typer.Option("--folds", help="folds of the search data")] = 5,
    removed: Annotated[
        list[float] | None, typer.Option("--removed", help="fraction to remove (repeatable); default: 0.1 to 0.9")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="scan this group alone (repeatable); others elsewhere")
    ] = None,
    recovery: Annotated[
        str | None, typer.Option("--recovery", help="measure each cut before and after it: recalibrate")
    ] = None,
    full: o.Full = False,
    ceiling: Annotated[
        float | None, typer.Option("--ceiling", help="what surely loses more nats needs no more examples")
    ] = None,
    executor: o.ExecutorName = "serial",
    merge: Annotated[
        bool, typer.Option("--merge", help="no scan: merge parts of one that other machines have left in folders")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="folder for the curves as PNG, SVG and HTML")] = None,
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    freeze: o.Freeze = None,
    tie: o.Tie = None,
    rules: o.RulesName = None,
    baked: o.Baked = "freeze",
    random_weights: o.RandomWeights = False,
    out: o.Out = None,
    seed: o.Seed = 0,
    resume: o.Resume = False,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Measure the loss while each group is thinned out; results are kept as they come."""
    folder = need_out(out, "measured points are kept there as they come")
    if merge:
        curves, n_lines = _merge.merge([Path(part) for part in model], folder)
        if curves is None:
            console().print(
                f"{n_lines} measurements are in {escape(str(folder / STORE))}; a part is unfinished: "
                f"`secateur scan MODEL --out {escape(str(folder))} --resume` goes on with all of them."
            )
            return
        held = _store.read_json(folder / SCORES) if (folder / SCORES).exists() else None
        _keep_curves(curves, None if held is None else from_json(Scores, held), folder, plot, json)
        return
    if len(model) != 1:
        raise typer.BadParameter(f"one MODEL is scanned; with --merge folders are merged: {' '.join(model)}")
    named = names.model(model[0], weights=not random_weights)
    splits, chosen = _data(data), _task(task)
    groups = _couple(named, _inputs(named, inputs, shape, data), freeze, tie, rules, baked)
    scores = _left(folder / SCORES, Scores, groups) or _score(named.model, groups, splits, task, criterion, seed, json)
    _store.write_json(folder / SCORES, to_json(scores))
    with progress(quiet=json) as tell, seeded(derive(seed, "scan"), splits.search):
        curves = scan_verb(
            named.model,
            groups,
            scores,
            splits.search,
            chosen,
            removed=removed or REMOVED,
            only=only or (),
            n_folds=folds,
            store=folder / STORE,
            resume=resume,
            recovery=None if recovery is None else chained(recovery, RECOVERIES, chain, what="recovery"),
            precision=None if full else Precision(ceiling=ceiling),
            executor=member(executor, EXECUTORS, what="executor"),
            progress=tell,
        )
    _keep_curves(curves, scores, folder, plot, json)


def _keep_curves(curves: Curves, scores: Scores | None, folder: Path, plot: Path | None, json: bool) -> None:
    _store.write_json(folder / CURVES, to_json(curves))
    files = () if plot is None else _report.plot_curves(curves, plot, scores=scores)
    if json:
        say_json(to_json(curves))
        return
    asked = {(p.group, p.removed): p.n_removed for p in curves.points}
    fractions = sorted({p.removed for p in curves.points})
    shown = [f for f in fractions if any(abs(f - t) < 0.03 for t in (0.1, 0.3, 0.5, 0.7, 0.9))] or fractions
    table = Table("group", *(f"-{f:.0%}" for f in shown), title="increase of the loss, nats")
    for g, (name, line) in enumerate(zip(curves.names, read(curves), strict=True)):
        at = {p.n_removed: f"{p.loss:.3g}\n± {p.error:.1g}" for p in line}
        table.add_row(escape(name), *(at.get(asked.get((g, f), 0), "") for f in shown))
    console().print(_numeric(table))
    for path in files:
        console().print(escape(str(path)), soft_wrap=True)


@guarded
def plan(
    model: o.Model,
    macs: o.Macs = None,
    params: o.Params = None,
    memory: o.Memory = None,
    allocator: o.AllocatorName = "greedy",
    data: o.DataName = None,
    task: o.TaskName = "classification",
    criterion: o.CriterionName = "obd",
    round_to: Annotated[int, typer.Option("--round-to", help="kept counts are multiples of this")] = 1,
    least: Annotated[int, typer.Option("--least", help="least kept units per group")] = 1,
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    freeze: o.Freeze = None,
    tie: o.Tie = None,
    rules: o.RulesName = None,
    baked: o.Baked = "freeze",
    random_weights: o.RandomWeights = False,
    out: o.Out = None,
    seed: o.Seed = 0,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Choose which units to keep for a budget, from the scores (and curves) in --out, or from --data."""
    named = names.model(model, weights=not random_weights)
    groups = _couple(named, _inputs(named, inputs, shape, data), freeze, tie, rules, baked)
    scores = _left(out / SCORES, Scores, groups) if out else None
    if scores is None:
        scores = _score(named.model, groups, _data(data), task, criterion, seed, json)
    curves = _left(out / CURVES, Curves, groups) if out else None
    made = plan_verb(
        groups,
        scores,
        _budget(macs, params, memory),
        allocator=member(allocator, ALLOCATORS, what="allocator"),
        curves=curves,
        round_to=round_to,
        least=least,
    )
    if out is not None:
        _store.write_json(out / SCORES, to_json(scores))
        _store.write_json(out / PLAN, to_json(made))
    if json:
        say_json(to_json(made))
        return
    _show_plan(made)


@guarded
def cut(
    model: o.Model,
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    data: o.DataName = None,
    freeze: o.Freeze = None,
    tie: o.Tie = None,
    rules: o.RulesName = None,
    baked: o.Baked = "freeze",
    random_weights: o.RandomWeights = False,
    out: o.Out = None,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Remove what plan.json in --out says, verify the cut, and save the smaller model there."""
    folder = need_out(out, "it holds plan.json, and takes the smaller model")
    named = names.model(model, weights=not random_weights)
    example = _inputs(named, inputs, shape, data)
    groups = _couple(named, example, freeze, tie, rules, baked)
    made = _left(folder / PLAN, Plan, groups)
    if made is None:
        raise InputError("there is no plan", where=str(folder / PLAN), todo="run `secateur plan` with the same --out")
    small, receipt = cut_verb(named.model, groups, made, example_inputs=example)
    _export.save(small, folder, receipt=receipt, plan=made)
    check = receipt.verification
    if json:
        say_json({"out": str(folder), "verification": None if check is None else to_json(check)})
        return
    _show_plan(made)
    if check is not None:
        console().print(
            f"Verified against the masked model ({', '.join(check.checks)}): "
            f"relative error {check.error:.2g}, allowed {check.tolerance:.2g}."
        )
    console().print(f"Saved in {escape(str(folder))}")


@guarded
def prune(
    model: o.Model,
    data: o.DataName = None,
    task: o.TaskName = "classification",
    macs: o.Macs = None,
    params: o.Params = None,
    memory: o.Memory = None,
    max_drop: o.MaxDrop = None,
    steps: Annotated[int, typer.Option("--steps", help="gradual steps")] = 3,
    criterion: o.CriterionName = "obd",
    allocator: o.AllocatorName = "greedy",
    recovery: Annotated[
        str, typer.Option("--recovery", help="after every cut; several with + between them")
    ] = "finetune(epochs=3)+recalibrate",
    schedule: Annotated[str, typer.Option("--schedule", help="one_shot, linear, cubic")] = "cubic",
    full: o.Full = False,
    confidence: o.Confidence = 0.95,
    round_to: Annotated[int, typer.Option("--round-to", help="kept counts are multiples of this")] = 1,
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    freeze: o.Freeze = None,
    tie: o.Tie = None,
    rules: o.RulesName = None,
    baked: o.Baked = "freeze",
    random_weights: o.RandomWeights = False,
    out: o.Out = None,
    seed: o.Seed = 0,
    resume: o.Resume = False,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """The whole way: score, plan, cut and retrain step by step, certify, save and report."""
    folder = need_out(out, "the run is kept there, and the smaller model")
    named = names.model(model, weights=not random_weights)
    splits = _data(data)
    budget = None if macs is None and params is None and memory is None else _budget(macs, params, memory)
    with progress(quiet=json) as tell:
        result = pipeline.prune(
            named.model,
            _inputs(named, inputs, shape, data),
            data=splits,
            task=_task(task),
            budget=budget,
            max_drop=max_drop,
            steps=steps,
            criterion=member(criterion, CRITERIA, what="criterion"),
            allocator=member(allocator, ALLOCATORS, what="allocator"),
            recovery=chained(recovery, RECOVERIES, chain, what="recovery"),
            schedule=member(schedule, SCHEDULES, what="schedule"),
            precision=None if full else pipeline.PRECISION,
            confidence=confidence,
            round_to=round_to,
            freeze=tuple(freeze or ()),
            tie=_pairs(tie),
            rules=_rules(rules),
            baked=_baked(baked),
            seed=seed,
            out=folder / "run",
            resume=resume,
            progress=tell,
        )
    _export.save(result.model, folder, receipt=result.receipt, certificate=result.certificate, plan=result.plan)
    content = _report.summary(result)
    _store.write_json(folder / REPORT, to_json(content))
    page = result.report(folder / "report.html")
    if json:
        say_json(to_json(content))
        return
    _show_candidates(content)
    for line in _report.verdict(content):
        console().print(escape(line))
    console().print(f"Saved in {escape(str(folder))}; report: {escape(str(page))}")


@guarded
def certify(
    model: o.Model,
    data: o.DataName = None,
    max_drop: o.MaxDrop = None,
    task: o.TaskName = "classification",
    confidence: o.Confidence = 0.95,
    more_tries: Annotated[bool, typer.Option("--more-tries", help="keep error probability for later tries")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="derive the certificate in --out again, and compare")
    ] = False,
    random_weights: o.RandomWeights = False,
    out: o.Out = None,
    seed: o.Seed = 0,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Test the smaller model in --out against the dense one on held-out data; exit code 4 if it cannot be certified."""
    folder = need_out(out, "it holds the smaller model, and takes the certificate")
    if max_drop is None and not verify:
        raise typer.BadParameter("--max-drop is needed: the drop that is to be ruled out")
    named = names.model(model, weights=not random_weights)
    splits = _data(data)
    if splits.held_out is None:
        raise InputError(
            "there is no held-out data",
            where=data,
            todo="return Data(train=, search=, held_out=); a certificate needs data that nothing was chosen with",
        )
    if verify:
        held = need_certificate(folder)
        with (
            progress(quiet=json) as tell,
            seeded(derive(seed, "certify"), splits.held_out, splits.search, splits.train),
        ):
            checked = verify_certificate(
                held,
                named.model,
                candidates(folder, held, named.model),
                splits.held_out,
                _task(task),
                also=(splits.search, splits.train),
                progress=tell,
            )
        if json:
            say_json(to_json(checked))
        else:
            for check in checked.checks:
                mark = "agrees" if check.holds else "DOES NOT AGREE"
                console().print(escape(f"{check.name}: {mark}" + (f" ({check.detail})" if check.detail else "")))
        if not checked.holds:
            raise typer.Exit(NOT_CERTIFIED)
        return
    small, kept = _export.load(folder, model=named.model), _export.contents(folder)
    with progress(quiet=json), seeded(derive(seed, "certify"), splits.held_out, splits.search, splits.train):
        proof = certify_verb(
            named.model,
            [small],
            splits.held_out,
            _task(task),
            max_drop=max_drop,
            confidence=confidence,
            also=(splits.search, splits.train),
            history=() if kept.certificate is None else (kept.certificate,),
            more_tries=more_tries,
            seed=seed,
        )
    _export.save(small, folder, receipt=kept.saved.receipt, certificate=proof, plan=kept.plan)
    if json:
        say_json(to_json(proof))
    else:
        console().print(escape(explain(proof)))
    if proof.certified is None:
        raise typer.Exit(NOT_CERTIFIED)


@guarded
def report(
    out: Annotated[Path, typer.Argument(help="folder that `secateur prune` or `secateur demo` has filled")],
    to: Annotated[Path | None, typer.Option("--to", help="the HTML file; default: report.html in that folder")] = None,
    json: o.Json = False,
) -> None:
    """Write the HTML report of a finished run again."""
    content = from_json(Report, _store.read_json(out / REPORT))
    if json:
        say_json(to_json(content))
        return
    page = _report.write(content, to or out / "report.html")
    console().print(escape(str(page)), soft_wrap=True)


@guarded
def export(
    model: o.Model,
    to: Annotated[Path, typer.Option("--to", help="the file to write")],
    format: Annotated[str, typer.Option("--format", help="onnx, torch_export, or onnx(dynamic_batch=False)")] = "onnx",
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    data: o.DataName = None,
    random_weights: o.RandomWeights = False,
    out: o.Out = None,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Export the smaller model in --out (or MODEL itself, without --out), and check the file by running it."""
    named = names.model(model, weights=out is None and not random_weights)
    chosen = named.model if out is None else _export.load(out, model=named.model)
    told = _export.export(
        chosen, _inputs(named, inputs, shape, data), to, exporter=member(format, EXPORTERS, what="exporter")
    )
    if json:
        say_json(told)
        return
    batches = ", ".join(str(b) for b in told["batches"])
    console().print(
        f"{escape(str(told['path']))}: {told['bytes']:,} bytes, relative error {told['error']:.2g} "
        f"(checked at batch {batches})",
        soft_wrap=True,
    )


@guarded
def bench(
    model: o.Model,
    batch: Annotated[list[int] | None, typer.Option("--batch", help="batch size (repeatable)")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="torch threads; default: as torch chooses")] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="timed passes of each model")] = 50,
    inputs: o.Inputs = None,
    shape: o.Shape = None,
    data: o.DataName = None,
    out: o.Out = None,
    json: o.Json = False,
    config: o.Config = None,
) -> None:
    """Time the dense model and the smaller one in --out side by side."""
    named = names.model(model, weights=False)
    models: dict[str, nn.Module] = {"dense": named.model}
    if out is not None:
        models["pruned"] = _export.load(out, model=named.model)
    example = _inputs(named, inputs, shape, data)
    sizes = {n: _resized(example, n) for n in (batch or [1, 64])}
    with progress(quiet=json) as tell:
        found = _latency.measure(models, sizes, threads=threads, repeats=repeats, progress=tell)
    if json:
        say_json({"latency": [to_json(entry) for entry in found]})
        return
    console().print(latency_table(found))


def latency_table(found: tuple[Any, ...]) -> Table:
    """Median times with intervals, and how many times as fast as the first model."""
    first = found[0]
    table = Table(
        *("batch", "model", "median", "95 % interval", "speed-up"),
        title=f"{first.device}, {first.runtime}, {first.threads} threads, {first.n} interleaved passes",
    )
    dense = {b: next(e.median for e in found if e.batch == b) for b in {e.batch for e in found}}
    for e in found:
        interval = f"{1e3 * e.low:.3f} to {1e3 * e.high:.3f}"
        table.add_row(str(e.batch), e.label, f"{1e3 * e.median:.3f} ms", interval, f"{dense[e.batch] / e.median:.2f} x")
    return _numeric(table, left=2)


# Reading names


def _inputs(named: names.Named, inputs: str | None, shape: str | None, data: str | None) -> Any:
    """Example inputs: as named, of that shape, as the model's source knows them, or the start of the data."""
    if inputs is not None:
        found = names.load_object(inputs, what="example inputs")
        return found() if callable(found) and not isinstance(found, Tensor) else found
    if shape is not None:
        return names.shape(shape)
    if named.example_inputs is not None:
        return named.example_inputs
    if data is not None:
        return names.inputs_of(names.first_batch(_data(data).search))
    raise InputError(
        "the model must be run once to see what computes what, and nothing says on which inputs",
        where=named.name,
        todo="pass --shape 2x3x224x224, --inputs module:function, or --data module:function",
    )


@functools.lru_cache(maxsize=4)
def _data(name: str | None) -> Data:
    if name is None:
        raise InputError("data is needed", todo="pass --data module:function")
    return names.data(name)


def _task(name: str) -> Task:
    made = member(name, TASKS, what="task")
    if not isinstance(made, Task):
        raise InputError("this is no task", where=name, expected="secateur.Task", got=type(made).__name__)
    return made


def _budget(macs: float | None, params: float | None, memory: float | None) -> Budget:
    return Budget(macs=macs, params=params, memory=memory)


def _couple(
    named: names.Named, example: Any, freeze: list[str] | None, tie: list[str] | None, rules: str | None, baked: str
) -> Groups:
    found = trace_verb(named.model, example)
    return couple(found, freeze=tuple(freeze or ()), tie=_pairs(tie), rules=_rules(rules), baked=_baked(baked))


def _pairs(tie: list[str] | None) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(part.strip() for part in text.split("=")) for text in tie or ()]
    for text, pair in zip(tie or (), pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise InputError("--tie takes two names of parameters", expected="first.weight=second.weight", got=text)
    return tuple((a, b) for a, b in pairs)


def _rules(name: str | None) -> Mapping[str, Any] | None:
    """The library's rules and those of a table of the user's: `module:TABLE`, or `module` for its `RULES`."""
    if name is None:
        return None
    found = names.load_object(name if ":" in name else f"{name}:RULES", what="table of op rules")
    if not isinstance(found, Mapping) or not all(isinstance(k, str) and callable(v) for k, v in found.items()):
        raise InputError(
            "this is no table of op rules",
            where=name,
            expected='a dict like {"mylib::my_op": my_rule}',
            got=type(found).__name__,
        )
    return {**RULES, **found}


def _baked(name: str) -> Literal["freeze", "submodule"]:
    if name not in ("freeze", "submodule"):
        raise UnknownName("--baked is one of two words", expected="freeze or submodule", got=name)
    return "submodule" if name == "submodule" else "freeze"


def _score(
    model: nn.Module,
    groups: Groups,
    data: Data,
    task: str,
    criterion: str,
    seed: int,
    quiet: bool,
    *,
    store: Path | None = None,
    resume: bool = False,
) -> Scores:
    with progress(quiet=quiet) as tell, seeded(derive(seed, "score"), data.search):
        found = score_verb(
            model,
            groups,
            data.search,
            _task(task),
            criterion=member(criterion, CRITERIA, what="criterion"),
            store=store,
            resume=resume,
            progress=tell,
        )
    assert isinstance(found, Scores)
    return found


def _left(path: Path, noun: Callable[..., Noun], groups: Groups) -> Noun | None:
    """What an earlier command left in the folder, None if it left nothing.

    Raises:
        StaleArtifact: it was made for another model.
    """
    if not path.exists():
        return None
    found: Any = from_json(noun, _store.read_json(path))  # type: ignore[arg-type]
    if found.structure and found.structure != groups.structure:
        raise StaleArtifact(
            "this was made for another model",
            where=str(path),
            expected=groups.structure[:12],
            got=found.structure[:12],
            todo="name another --out, or make it again",
        )
    return found  # type: ignore[no-any-return]


def _resized(example: Any, n: int) -> Any:
    size = batch_size(example)

    def change(item: Any) -> Any:
        if not isinstance(item, Tensor) or item.ndim == 0 or len(item) != size:
            return item
        return item.repeat(-(-n // size), *([1] * (item.ndim - 1)))[:n]

    return map_leaves(change, example)


# Showing


def _numeric(table: Table, *, left: int = 1) -> Table:
    for column in table.columns[left:]:
        column.justify = "right"
    return table


def _show_plan(made: Plan) -> None:
    table = Table("group", "kept", "of", "share")
    for name, kept, n in zip(made.names, made.kept, made.n_units, strict=True):
        table.add_row(escape(name), str(len(kept)), str(n), f"{len(kept) / n:.0%}")
    out = console()
    out.print(_numeric(table))
    if made.before is not None and made.after is not None:
        parts = [
            f"{label} {before:,} -> {after:,} ({after / before:.1%})"
            for label, before, after in (
                ("MACs", made.before.macs, made.after.macs),
                ("parameters", made.before.params, made.after.params),
                ("bytes", made.before.memory, made.after.memory),
            )
            if before
        ]
        out.print("\n".join(parts))
    if made.predicted is not None:
        out.print(f"predicted increase of the loss: {made.predicted:.4g} nats")


def _show_candidates(content: Report) -> None:
    table = Table("", "MACs", "parameters", "loss", "score", "drop", "")
    dense = content.state.candidates[0].costs
    for i, c in enumerate(content.state.candidates):
        score_text = "" if c.search_correct is None else f"{c.search_correct:.2%}"
        drop = "" if c.drop is None or not i else f"{c.drop:.4f}"
        state = "chosen" if i == content.chosen else "accepted" if c.accepted else "rolled back"
        macs = f"{c.costs.macs / dense.macs:.1%}" if dense.macs else "0"
        params = f"{c.costs.params / dense.params:.1%}" if dense.params else "0"
        table.add_row(
            f"step {c.step}" if c.step else "dense", macs, params, f"{c.search_loss:.4f}", score_text, drop, state
        )
    console().print(table)

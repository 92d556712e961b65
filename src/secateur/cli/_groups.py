"""Groups on a terminal: the tree of modules with what can go, the equations, and what cannot go and why."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from secateur import _cost, _counts, _report
from secateur.schema.costs import Costs
from secateur.schema.groups import Group, Groups


def show_groups(console: Console, groups: Groups, title: str) -> None:
    """Print all of it."""
    dense, parts = _cost.cost(groups.costs, _cost.full_counts(groups)), _cost.carried(groups)
    units = sum(g.n_units for g in groups.groups)
    tree = Tree(
        f"[bold]{escape(title)}[/bold]: {dense.params:,} parameters, {dense.macs:,} MACs, "
        f"{units} units in {len(groups.groups)} groups"
    )
    branches = [tree]
    for row in _report.outline(groups.groups):
        if row.group is None:
            text = f"[bold]{escape(row.name)}[/bold]"
        else:
            text = _group(row.group, parts[row.group.index], dense, groups)
        branches[row.depth + 1 :] = [branches[row.depth].add(text)]
    console.print(tree)
    if groups.equations:
        names = [g.name for g in groups.groups]
        fit = Tree("[bold]numbers that must fit[/bold], with k units kept")
        for i, equation in enumerate(groups.equations, 1):
            branch = fit.add(f"[magenta]#{i}[/magenta] {escape(_counts.relation(equation, names))}")
            because = " at ".join(text for text in (equation.reason, equation.source) if text)
            if because:
                branch.add(f"[dim]{escape(because)}[/dim]")
        console.print(fit)
    if groups.frozen:
        cannot = Tree("[bold]cannot be removed[/bold]")
        for reason, n_axes, count, what, where in _report.frozen_rows(groups.frozen):
            branch = cannot.add(f"{escape(reason)}  [cyan]{count} indices of {n_axes} axes[/cyan]")
            branch.add(f"[dim]{escape(what)}[/dim]")
            if where:
                branch.add(f"[dim]at {escape(where)}[/dim]")
        console.print(cannot)
    for note in groups.notes:
        console.print(f"[dim]note: {escape(note)}[/dim]")


def _group(group: Group, part: Costs, dense: Costs, groups: Groups) -> str:
    asked = [i for i, e in enumerate(groups.equations, 1) if any(g == group.index for g, _ in e.terms)]
    exact = "exact" if group.exact else f"[yellow]inexact: {escape(group.inexact_because)}[/yellow]"
    bound = f"  [magenta]{' '.join(f'#{i}' for i in asked)}[/magenta]" if asked else ""
    return (
        f"{escape(group.name)}  [cyan]{group.n_units} {group.kind.replace('_', ' ')}{'s' * (group.n_units > 1)}[/cyan]"
        f"  {part.params:,} parameters {_share(part.params, dense.params)}, {part.macs:,} MACs "
        f"{_share(part.macs, dense.macs)}  [dim]{len(group.members)} tensor axes[/dim]  {exact}{bound}"
    )


def _share(part: int, whole: int) -> str:
    return f"({part / whole:.1%})" if whole else "(0 %)"

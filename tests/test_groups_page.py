"""What a user sees of the groups: the outline of modules, the numbers beside a group, the page that draws them."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import _cost, _report
from secateur._couple import couple
from secateur._report._groups import _elements, groups_page, outline
from secateur._trace import trace
from secateur.schema.groups import Group, Groups


class Gated(nn.Module):
    """Channels that are split in two, and a name that HTML would stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"a<b": nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12))})
        self.mix, self.gate = (nn.Conv2d(6, 8, 1, bias=False) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        value, gate = self.body["a<b"](x).chunk(2, 1)
        return self.head((self.mix(value) * self.gate(gate).sigmoid()).mean((2, 3)))


@pytest.fixture(scope="module")
def groups() -> Groups:
    torch.manual_seed(0)
    return couple(trace(Gated().eval(), torch.randn(2, 3, 6, 6)))


def group(index: int, module: str) -> Group:
    return Group(index=index, name=module or "own", kind="neuron", n_units=2, members=(), module=module)


def test_the_outline_is_the_tree_of_modules_without_lines_that_say_nothing():
    rows = outline([group(i, m) for i, m in enumerate(("", "enc.layer.0.fc", "enc.layer.1.fc", "enc.layer.1.out"))])
    assert [(r.depth, r.name, r.group is not None) for r in rows] == [
        (0, "own", True),
        (0, "enc.layer", False),
        (1, "enc.layer.0.fc", True),
        (1, "enc.layer.1", False),
        (2, "enc.layer.1.fc", True),
        (2, "enc.layer.1.out", True),
    ]


def test_a_group_carries_the_elements_that_a_mask_of_all_its_units_covers(groups: Groups):
    model = Gated()
    shapes = {n: p.shape for n, p in model.named_parameters()}
    for g, part in zip(groups.groups, _cost.carried(groups), strict=True):
        covered = {n: torch.zeros(shape, dtype=torch.bool) for n, shape in shapes.items()}
        for m in g.members:
            if m.param in covered:
                index = torch.tensor([i for i, u in enumerate(m.units) if u >= 0])
                covered[m.param].index_fill_(m.axis, index, value=True)
        assert part.params == sum(int(c.sum()) for c in covered.values())
    # 2 x 16 positions, 8 channels over 6 in both convolutions; then the head
    mix = next(part for g, part in zip(groups.groups, _cost.carried(groups), strict=True) if g.name.startswith("mix"))
    assert mix.macs == 2 * (2 * 16 * 6 * 8) + 2 * 8 * 5


def test_the_map_counts_each_element_once(groups: Groups):
    shares = _elements(groups)
    assert {n: n_elements for n, (n_elements, _) in shares.items()} == {
        n: p.numel() for n, p in Gated().named_parameters()
    }
    assert shares["head.bias"][1] == 0
    assert shares["head.weight"][1] == 1
    assert shares["mix.weight"][1] == 1


class Links(html.parser.HTMLParser):
    """Whatever a page would fetch, and its tags in order."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.opened: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_draws_every_module_names_every_group_and_refers_to_nothing_outside(groups: Groups, tmp_path: Path):
    text = _report.draw_groups(groups, "Gated", tmp_path / "groups.html").read_text()
    page = Links()
    page.feed(text)
    assert page.links == []
    assert "url(" not in text
    assert "a<b" not in text
    bars = re.findall(r"<title>([^<]*): ([^<]*) parameters", text)
    assert {"all", "body", "mix.weight", "head"} <= {name for name, _ in bars}
    for g in groups.groups:
        assert f">{g.name.replace('<', '&lt;')}<" in text
    assert "it is an output of the model" in text
    assert page.opened.count("svg") == 1


def test_the_page_says_which_equations_ask_something_of_a_group(groups: Groups):
    content = groups_page(groups, "Gated")
    assert content["equations"], "chunk(2) asks for an even number"
    for number, text, reason, source in content["equations"]:
        named = [
            r["name"] for r in content["rows"] if r["group"] and str(number) in r["group"]["equations"].split(", ")
        ]
        assert named
        assert all(f"k[{name}]" in text for name in named)
        assert reason
        assert source

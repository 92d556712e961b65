"""What the import contract in pyproject.toml cannot express, read from the syntax trees of the sources.

Each rule is a function from (file, tree) to the offences in it, so that it can be shown here, on a few lines made
for it, that it bites.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import secateur

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "secateur"
STAGES = {
    *("_trace", "_couple", "_score", "_scan", "_plan", "_cut", "_recover", "_certify", "_report", "_export"),
}
MEMBERS = {
    *("criteria", "allocators", "recoveries", "schedules", "exporters", "executors", "tasks", "metrics", "certifiers"),
}
OUTSIDE = {"cli", "integrations", "__main__"}
ABOVE_STAGES = OUTSIDE | {"pipeline", "_gradual", "_validate"}
HEAVY = {
    *("accelerate", "lightning", "matplotlib", "onnx", "onnxruntime", "onnxscript", "PIL", "pyarrow", "ray", "sklearn"),
    *("timm", "torch_pruning", "torchvision", "transformers"),
}
FAMILIES = {
    *("alexnet", "bert", "bloom", "convnext", "deit", "densenet", "efficientnet", "electra", "falcon", "gemma"),
    *("googlenet", "gpt", "inception", "llama", "mamba", "mistral", "mixtral", "mobilenet", "qwen", "regnet"),
    *("resnet", "resnext", "roberta", "squeezenet", "swin", "unet", "vgg", "vit", "whisper", "yolo"),
}
ALLOWED_IN_CRITERIA = {"__future__", "collections", "dataclasses", "functools", "math", "torch", "typing", "warnings"}


class Source(NamedTuple):
    """One module: dotted name below `secateur` ("" = the package itself) and its syntax tree."""

    name: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        """First part of the name: the module or folder that the contract places."""
        return self.name.partition(".")[0]


def read(path: Path) -> Source:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return Source(".".join(p for p in parts if p != "__init__"), ast.parse(path.read_text(), str(path)))


SOURCES = [read(path) for path in sorted(PACKAGE.rglob("*.py"))]
LAYERS = {source.layer for source in SOURCES} | STAGES | MEMBERS


def made(name: str, text: str) -> Source:
    return Source(name, ast.parse(text))


# --------------------------------------------------------------------------------------- reading helpers
def imported(source: Source, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute dotted names of everything imported ("secateur._cut.cut" for `from ._cut import cut`), with lines.

    With `top_level_only`, only what runs when the module is imported: not what functions import, and not what
    stands under `if TYPE_CHECKING`.
    """

    def visit(nodes: list[ast.stmt]) -> Iterator[tuple[str, int]]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    here = ["secateur", *source.name.split(".")] if source.name else ["secateur"]
                    package = here if is_package(source) else here[:-1]
                    base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
            elif top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            elif top_level_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from visit(node.orelse)
            else:
                for block in ("body", "orelse", "finalbody"):
                    yield from visit(getattr(node, block, []))
                for inner in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                    yield from visit(inner.body)

    yield from visit(source.tree.body)


def is_package(source: Source) -> bool:
    return (PACKAGE / Path(*source.name.split(".")) / "__init__.py").is_file() if source.name else True


def own_layer(dotted: str) -> str | None:
    """The layer of ours that a dotted name belongs to; "" for the root package; None for a foreign name."""
    first, *rest = dotted.split(".")
    if first != "secateur":
        return None
    return rest[0] if rest and rest[0] in LAYERS else ""


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the string constants that are docstrings, or stand alone as attribute comments."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def dotted_chain(node: ast.expr) -> str:
    """ "torch._C.f" for that attribute chain, "" for anything that is not a plain chain."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


# --------------------------------------------------------------------------------------- the rules
def stages_import_stages_or_members(source: Source) -> Iterator[str]:
    if source.layer in STAGES:
        for name, line in imported(source):
            layer = own_layer(name)
            if layer in STAGES | MEMBERS and layer != source.layer:
                yield f"line {line}: a stage imports {name}; make it an argument, or move the shared part below"


def anything_imports_the_root(source: Source) -> Iterator[str]:
    """`import secateur` inside the library would go round the contract; the outside may use the public names."""
    if source.name and source.layer not in OUTSIDE:
        for name, line in imported(source):
            if own_layer(name) == "" and name != "secateur.__version__":
                yield f"line {line}: {name}: import from the module that defines it"


def members_import_siblings(source: Source) -> Iterator[str]:
    """A file of a member folder knows no other member; `_private.py` beside it may hold what they share."""
    folder, _, module = source.name.partition(".")
    if folder in MEMBERS and module:
        for name, line in imported(source):
            parts = name.split(".")
            if parts[:1] != ["secateur"] or own_layer(name) not in MEMBERS:
                continue
            private = len(parts) > 2 and parts[1] == folder and parts[2].startswith("_")
            if not private:
                yield f"line {line}: a member imports {name}"


def criteria_see_more_than_statistics(source: Source) -> Iterator[str]:
    if source.layer != "criteria":
        return
    for name, line in imported(source):
        layer = own_layer(name)
        if layer is None and name.split(".")[0] not in ALLOWED_IN_CRITERIA:
            yield f"line {line}: a criterion imports {name}"
        if layer is not None and layer not in {"criteria", "schema", "errors"}:
            yield f"line {line}: a criterion imports {name}"
        if name.startswith(("torch.nn", "torch.ops", "torch.fx", "torch.autograd")):
            yield f"line {line}: a criterion imports {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute):
            if "hook" in node.attr:
                yield f"line {node.lineno}: a criterion touches a hook: {node.attr}"
            if dotted_chain(node).startswith(("torch.nn.", "torch.ops.", "torch.autograd.")):
                yield f"line {node.lineno}: a criterion uses {dotted_chain(node)}"


def foundations_import_upwards(source: Source) -> Iterator[str]:
    allowed = {"schema": {"schema", "errors"}, "errors": {"schema", "errors"}}.get(source.layer)
    if source.layer == "ops":
        allowed = {"ops", "schema", "errors"}
    if allowed is not None:
        for name, line in imported(source):
            layer = own_layer(name)
            if layer is not None and layer not in allowed:
                yield f"line {line}: {source.layer} imports {name}"


def heavy_packages_at_import_time(source: Source) -> Iterator[str]:
    for name, line in imported(source, top_level_only=True):
        if name.split(".")[0] in HEAVY:
            yield f"line {line}: {name} at module top level; import it inside the function that needs it"


def model_families_in_the_core(source: Source) -> Iterator[str]:
    """Identifiers and strings (docstrings and comments are free) that name a family of models."""
    if source.layer in OUTSIDE:
        return
    skip = docstrings(source.tree)
    for node in ast.walk(source.tree):
        match node:
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text) | ast.keyword(arg=str(text)):
                pass
            case ast.FunctionDef(name=text) | ast.AsyncFunctionDef(name=text) | ast.ClassDef(name=text):
                pass
            case ast.alias(name=text):
                pass
            case ast.Constant(value=str(text)) if id(node) not in skip:
                pass
            case _:
                continue
        for word in words(text) & FAMILIES:
            yield f"line {getattr(node, 'lineno', '?')}: names the family {word!r}"


def words(text: str) -> set[str]:
    """Lower-case words of a text or identifier: "LlamaConfig, vit_b_16" -> llama, config, vit, b."""
    return {w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)}


def private_torch(source: Source) -> Iterator[str]:
    if source.layer in {"_trace", "_replay"}:
        return

    def is_private(dotted: str) -> bool:
        first, *rest = dotted.split(".")
        # A private class of a public module (`_ConvNd`) is a lesser evil than a private module, and allowed.
        return first == "torch" and any(part == "_C" or re.match(r"_[a-z]", part) for part in rest)

    for name, line in imported(source):
        if is_private(name):
            yield f"line {line}: imports {name}, private to torch"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and is_private(dotted_chain(node)):
            yield f"line {node.lineno}: uses {dotted_chain(node)}, private to torch"


def prints(source: Source) -> Iterator[str]:
    if source.layer in {"cli", "__main__"}:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: prints; return it, or report through `progress`"


def global_mutable_state(source: Source) -> Iterator[str]:
    """`global`, and module-level lists, dicts and sets that could be filled later (tables are made by `table`)."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"
    for statement in source.tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            empty = ast.unparse(statement.value) in {"[]", "{}", "set()", "dict()", "list()"}
            if empty:
                yield f"line {statement.lineno}: an empty container at module level waits to be filled"


RULES = {
    rule.__name__: rule
    for rule in (
        stages_import_stages_or_members,
        anything_imports_the_root,
        members_import_siblings,
        criteria_see_more_than_statistics,
        foundations_import_upwards,
        heavy_packages_at_import_time,
        model_families_in_the_core,
        private_torch,
        prints,
        global_mutable_state,
    )
}


# --------------------------------------------------------------------------------------- the tests
@pytest.mark.parametrize("rule", RULES)
def test_no_module_breaks(rule: str) -> None:
    offences = [f"{s.name or '__init__'}: {text}" for s in SOURCES for text in RULES[rule](s)]
    assert not offences, "\n" + "\n".join(offences)


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        ("stages_import_stages_or_members", "_plan", "from secateur.allocators import uniform"),
        ("stages_import_stages_or_members", "_plan", "def f():\n    from ._cut import cut"),
        ("stages_import_stages_or_members", "_report.html", "from secateur._certify import certify"),
        ("anything_imports_the_root", "_plan", "import secateur as sc"),
        ("anything_imports_the_root", "_plan", "from secateur import prune"),
        ("members_import_siblings", "criteria.obd", "from secateur.criteria.taylor import taylor"),
        ("members_import_siblings", "criteria.obd", "from .taylor import taylor"),
        ("members_import_siblings", "criteria.obd", "from secateur.tasks import classification"),
        ("criteria_see_more_than_statistics", "criteria.obd", "from torch import nn"),
        ("criteria_see_more_than_statistics", "criteria.obd", "from secateur import _units"),
        ("criteria_see_more_than_statistics", "criteria.obd", "def f(m):\n    m.register_forward_hook(print)"),
        ("criteria_see_more_than_statistics", "criteria.obd", "import torch\nx = torch.nn.Linear"),
        ("foundations_import_upwards", "schema.plan", "from secateur._units import offsets"),
        ("foundations_import_upwards", "ops.linear", "from secateur._trace import trace"),
        ("heavy_packages_at_import_time", "exporters.onnx", "import onnx"),
        ("heavy_packages_at_import_time", "exporters.onnx", "try:\n    import onnx\nexcept ImportError:\n    pass"),
        ("heavy_packages_at_import_time", "_report.plots", "class A:\n    from matplotlib import pyplot"),
        ("model_families_in_the_core", "_couple", "class LlamaRule: ..."),
        ("model_families_in_the_core", "_couple", "heads = {'bert': 12}"),
        ("model_families_in_the_core", "_couple", "def is_vit(m): ..."),
        ("private_torch", "_cut", "from torch.utils._pytree import tree_map"),
        ("private_torch", "_cut", "import torch\ntorch._C._log_api_usage_once('x')"),
        ("prints", "_cut", "def f():\n    print(1)"),
        ("global_mutable_state", "_store", "CACHE = {}"),
        ("global_mutable_state", "_store", "def f():\n    global N\n    N = 1"),
    ],
)
def test_each_rule_bites(rule: str, name: str, text: str) -> None:
    assert list(RULES[rule](made(name, text))), "the rule let it pass"


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        ("stages_import_stages_or_members", "_plan", "from secateur.schema.plan import Plan"),
        ("members_import_siblings", "criteria.obd", "from secateur.criteria._expansion import expand"),
        (
            "criteria_see_more_than_statistics",
            "criteria.obd",
            "import torch\nfrom secateur.schema.members import Criterion",
        ),
        ("heavy_packages_at_import_time", "exporters.onnx", "def f():\n    import onnx"),
        ("heavy_packages_at_import_time", "a", "if TYPE_CHECKING:\n    import onnx"),
        ("model_families_in_the_core", "_couple", '"""Works for bert and llama."""\nactivity = 1'),
        ("private_torch", "_cut", "import torch\nv = torch.__version__"),
        ("private_torch", "_trace", "from torch.utils._python_dispatch import TorchDispatchMode"),
    ],
)
def test_no_rule_forbids_what_is_meant_to_be_possible(rule: str, name: str, text: str) -> None:
    assert not list(RULES[rule](made(name, text)))


def test_the_layers_of_this_file_are_those_of_the_contract() -> None:
    with (PACKAGE.parents[1] / "pyproject.toml").open("rb") as file:
        contract = tomllib.load(file)["tool"]["importlinter"]["contracts"][0]
    rows = [{part.strip() for part in re.split(r"[|:]", row)} for row in contract["layers"]]
    assert STAGES in rows
    assert MEMBERS in rows
    assert {source.layer for source in SOURCES} - {""} == set().union(*rows)


def test_all_lists_exactly_what_the_package_exports() -> None:
    tree = next(source.tree for source in SOURCES if source.name == "")
    bound = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    bound |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    public = {name for name in bound if not name.startswith("_") and name != "annotations"}
    promised = [name for name in vars(secateur).get("__all__", ()) if name != "__version__"]
    assert len(promised) == len(set(promised)), "__all__ names something twice"
    verbs = set("trace couple score scan cross_validate plan cut recover certify report export save load prune".split())
    assert verbs | {"Task", "Data", "Budget", "tasks", "criteria"} <= set(promised)
    assert set(promised) == public
    assert not [name for name in promised if name not in vars(secateur)]

"""Names of models and data, as they stand on a command line, to the objects themselves.

timm:resnet50            torchvision:resnet18          a pretrained model of those packages
package.module:factory   path/to/file.py:factory       a function without arguments, or the object itself
path/to/folder           a Hugging Face model with config.json and weights
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur._evaluate import batch_size, check_batches, examples
from secateur.errors import InputError, NotInstalled, SecateurError, UnknownName
from secateur.schema.task import Batches, Data

LABELS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Named:
    """A model that was found by its name.

    Attributes:
        name: as given.  model: in eval mode.
        example_inputs: two examples, where the source of the model knows its inputs; else None.
    """

    name: str
    model: nn.Module
    example_inputs: Any = None


def model(name: str, *, weights: bool = True) -> Named:
    """The model of that name.

    Args:
        name: see the head of this module.
        weights: with trained weights, where the source offers them; False = as initialised, nothing is downloaded.

    Raises:
        UnknownName: nothing of that name, with what was tried.
        NotInstalled: the package that it comes from is missing.
    """
    source, _, rest = name.partition(":")
    if source == "timm" and rest:
        return _timm(name, rest, weights)
    if source == "torchvision" and rest:
        return _torchvision(name, rest, weights)
    if (Path(name) / "config.json").is_file():
        return _hugging_face(name, weights)
    made = load_object(name, what="model")
    if callable(made) and not isinstance(made, nn.Module):
        made = made()
    inputs = None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        made, inputs = made
    if not isinstance(made, nn.Module):
        raise InputError(
            "a model factory returns an nn.Module, or (nn.Module, example inputs)",
            where=name,
            got=type(made).__name__,
        )
    return Named(name=name, model=made.eval(), example_inputs=inputs)


def data(name: str) -> Data:
    """The data of that name: what `module:function` returns, as train, search and held-out batches.

    The function returns a `Data`, a mapping with these keys, a tuple (train, search) or (train, search, held_out),
    or one iterable of batches, which then serves as search and train data.

    Raises:
        UnknownName: nothing of that name.  InputError: something else came back.
        OneShotIterable: batches that can be iterated only once.
    """
    made = load_object(name, what="data")
    if inspect.isroutine(made):
        made = made()
    if isinstance(made, Data):
        found = made
    elif isinstance(made, Mapping) and {"search"} <= set(made) <= {"train", "search", "held_out"}:
        found = Data(train=made.get("train", made["search"]), search=made["search"], held_out=made.get("held_out"))
    elif isinstance(made, tuple) and 2 <= len(made) <= 3:
        found = Data(train=made[0], search=made[1], held_out=made[2] if len(made) == 3 else None)
    elif isinstance(made, Mapping | tuple | str | Tensor | nn.Module) or made is None:
        raise InputError(
            "a data function returns the batches",
            where=name,
            expected="secateur.Data, {'train':, 'search':, 'held_out':}, (train, search, held_out), or one iterable",
            got=type(made).__name__,
        )
    else:
        found = Data(train=made, search=made)
    for batches in (found.train, found.search, found.held_out):
        if batches is not None:
            check_batches(batches)
    return found


def load_object(name: str, *, what: str) -> Any:
    """The attribute that `module:attribute` or `path.py:attribute` names.

    Raises:
        UnknownName: no such file, module or attribute.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UnknownName(
            f"this names no {what}",
            where=name,
            expected="module:function or path.py:function"
            + (", timm:NAME, torchvision:NAME, or a folder with config.json" if what == "model" else ""),
            todo=f"write the name of a function that returns the {what}: my_project.nets:resnet",
        )
    module = _module(place, what)
    found = vars(module)
    if attribute not in found:
        offered = sorted(k for k, v in found.items() if callable(v) and not k.startswith("_"))
        raise UnknownName(
            f"no {attribute!r} in {place}", where=name, expected=", ".join(offered[:20]) or "a function", got=attribute
        )
    return found[attribute]


def _module(place: str, what: str) -> Any:
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise UnknownName(f"no such file for the {what}", where=place, todo="check the path")
        if path.stem in sys.modules and Path(sys.modules[path.stem].__file__ or "").resolve() == path:
            return sys.modules[path.stem]
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Under its own name, and with its folder on the path: worker processes of a loader import it again.
        sys.modules[path.stem] = module
        _add_path(path.parent)
        spec.loader.exec_module(module)
        return module
    _add_path(Path.cwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # only if the named module itself is missing; what it imports is the user's own business
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UnknownName(
                f"no module {error.name!r} for the {what}",
                where=place,
                todo="run in the folder that holds it, install it, or write path/to/file.py:function",
            ) from None
        raise


def _add_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def inputs_of(batch: Any) -> Any:
    """Example inputs out of a batch of labelled data: two examples, without the labels.

    The first element of a tuple or list, a mapping without its labels, or the tensor itself.
    """
    small = examples(batch, 0, min(2, batch_size(batch)))
    if isinstance(small, Mapping):
        return {k: v for k, v in small.items() if k not in LABELS}
    return small[0] if isinstance(small, tuple | list) else small


def first_batch(batches: Batches) -> Any:
    """The first batch.

    Raises:
        InputError: there is none.
    """
    for batch in batches:
        return batch
    raise InputError("the data is empty", todo="check the function that makes it")


def shape(text: str) -> Tensor:
    """`2x3x224x224` -> a tensor of that shape, standard normal, always the same.

    Raises:
        InputError: no such shape.
    """
    parts = text.replace(",", "x").split("x")
    if not parts or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise InputError("this is no shape", got=text, expected="sizes with x between them: 2x3x224x224")
    return torch.randn([int(p) for p in parts], generator=torch.Generator().manual_seed(0))


def _timm(name: str, rest: str, weights: bool) -> Named:
    timm = _package("timm", extra="timm")
    if not timm.is_model(rest):
        near = timm.list_models(f"*{rest}*")[:10]
        raise UnknownName("timm has no such model", where=name, expected=", ".join(near) or "see timm.list_models()")
    made = _download(name, lambda: timm.create_model(rest, pretrained=weights))
    channels, height, width = vars(made)["default_cfg"]["input_size"]
    return Named(name=name, model=made.eval(), example_inputs=shape(f"2x{channels}x{height}x{width}"))


def _torchvision(name: str, rest: str, weights: bool) -> Named:
    torchvision = _package("torchvision", extra="timm")
    known = torchvision.models.list_models()
    if rest not in known:
        near = [m for m in known if rest.split("_")[0] in m][:10]
        raise UnknownName(
            "torchvision has no such model", where=name, expected=", ".join(near) or ", ".join(known[:10])
        )
    made = _download(name, lambda: torchvision.models.get_model(rest, weights="DEFAULT" if weights else None))
    side = 299 if rest.startswith("inception") else 224
    return Named(name=name, model=made.eval(), example_inputs=shape(f"2x3x{side}x{side}"))


def _hugging_face(name: str, weights: bool) -> Named:
    transformers = _package("transformers", extra="hf")
    config = transformers.AutoConfig.from_pretrained(name)
    architecture = (config.architectures or [""])[0]
    if architecture not in dir(transformers):
        raise UnknownName(
            "config.json names no architecture of transformers",
            where=str(Path(name) / "config.json"),
            expected='"architectures": ["..."]',
            got=architecture or "none",
        )
    kind = getattr(transformers, architecture)
    made = kind.from_pretrained(name) if weights else kind(config)
    # what transformers itself traces a model with; token ids, or pixels
    inputs = {k: v for k, v in made.dummy_inputs.items() if isinstance(v, Tensor)}
    return Named(name=name, model=made.eval(), example_inputs=inputs)


def _package(name: str, *, extra: str) -> Any:
    """An optional package.

    Raises:
        NotInstalled: it is missing, or cannot be imported beside this torch.
    """
    try:
        return importlib.import_module(name)
    # torchvision raises RuntimeError where its compiled half was built for another torch
    except (ImportError, RuntimeError) as error:
        raise NotInstalled(
            f"{name} cannot be imported",
            got=error,
            todo=f"pip install 'secateur[{extra}]', with a torchvision built for the installed torch",
        ) from None


def _download(name: str, make: Any) -> nn.Module:
    """Run a factory that may fetch weights, and say what failed in words."""
    try:
        found: nn.Module = make()
    except (OSError, RuntimeError) as error:
        raise SecateurError(
            "the weights of this model could not be fetched",
            where=name,
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            todo="check the network, or pass --random-weights if the weights do not matter",
        ) from error
    return found

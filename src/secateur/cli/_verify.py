"""`secateur certify --verify`: the candidates of a certificate, found again in the folder that a run has left."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from secateur import _export, _store, _surgery
from secateur._gradual import STATE_FILE
from secateur.errors import StaleArtifact
from secateur.schema import from_json
from secateur.schema.certificate import Certificate
from secateur.schema.state import State


def need_certificate(folder: Path) -> Certificate:
    """The certificate in the folder.

    Raises:
        StaleArtifact: there is none.
    """
    found = _export.contents(folder).certificate
    if found is None:
        raise StaleArtifact(
            "this folder holds no certificate",
            where=str(folder),
            todo="make one first: secateur certify without --verify",
        )
    return found


def candidates(folder: Path, certificate: Certificate, dense: nn.Module) -> list[nn.Module]:
    """The models of the path, dense to sparse, known by their weights: the saved one, and those of the run beside it.

    Raises:
        StaleArtifact: one of them is not there any more.
        FileCorrupt: a file was truncated or changed.
    """
    small = _export.load(folder, model=dense)
    found = {_surgery.fingerprint_weights(small): small}
    run = folder / "run"
    if (run / STATE_FILE).exists():
        wanted = {entry.weights for entry in certificate.path}
        for candidate in from_json(State, _store.read_json(run / STATE_FILE)).candidates:
            if candidate.receipt is None or candidate.weights not in wanted:
                continue
            model = _surgery.apply(dense, candidate.receipt)
            saved = _store.load_tensors(run / candidate.file)
            with torch.no_grad():
                for name, canonical, tensor in _surgery.tensors(model):
                    if name == canonical:
                        tensor.copy_(saved[name])
            found[_surgery.fingerprint_weights(model)] = model.eval()
    for entry in certificate.path:
        if entry.weights not in found:
            raise StaleArtifact(
                f"{entry.name!r} of the certified path is not in this folder",
                where=str(folder),
                expected=f"a model with the weights {entry.weights[:12]}",
                todo="verify in the folder of the run that made the certificate",
            )
    return [found[entry.weights] for entry in certificate.path]

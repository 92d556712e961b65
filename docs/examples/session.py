"""The session of the README: prune the network of `digits.py` to half its multiply-accumulates, with a certificate."""

import torch

import secateur as sc
from digits import held_out, model, search, train

result = sc.prune(
    model,
    torch.zeros(2, 1, 8, 8),
    data=sc.Data(train=train, search=search, held_out=held_out),
    task=sc.tasks.classification(),
    budget=sc.Budget(macs=0.5),
    max_drop=0.02,
)
print(result.model)
print(sc.explain(result.certificate))
sc.save(result.model, "out", receipt=result.receipt, certificate=result.certificate)
sc.export(result.model, torch.zeros(2, 1, 8, 8), "out/model.onnx", exporter=sc.exporters.onnx())
result.report("out/report.html")

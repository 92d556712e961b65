"""Secateur: structured pruning for PyTorch. Verbs are functions, nouns are frozen records.

trace           model, example inputs -> Graph: what computes what
couple          Graph -> Groups: which indices of which parameters go together
score           model, Groups, data, task -> Scores: predicted loss increase if a unit goes
scan            model, Groups, Scores, data, task -> Curves: measured loss against removed fraction
cross_validate  model, Groups, Scores, Curves, data, task -> Validation: how much may go for an allowed drop
plan            Groups, Scores, Budget -> Plan: which units stay
cut             model, Groups, Plan -> smaller model, Receipt: what was taken where
recover         smaller model, data, task -> better model
certify         model, candidates, held-out data, task -> Certificate: the claim and its bound
compare         Scores of several criteria -> Comparison: held against units taken away one at a time
calibrate       Scores -> Scores: in the nats that a few units really cost when they were taken away
report          Result -> one HTML file; plot_curves, plot_comparison: PNG, SVG and a page
save, load      smaller model, Receipt -> a folder without pickle, and back
export          model, example inputs -> ONNX or torch.export

prune           all of these in order, step by step: model, example inputs, data, task, Budget -> Result

`secateur.pipeline` shows on one page how they fit together. Members (what a verb is told to use) are made by a call and
live in folders: criteria, allocators, recoveries, schedules, certifiers, metrics, executors, exporters, tasks.
"""

from secateur import allocators as allocators
from secateur import certifiers as certifiers
from secateur import criteria as criteria
from secateur import errors as errors
from secateur import executors as executors
from secateur import exporters as exporters
from secateur import metrics as metrics
from secateur import ops as ops
from secateur import recoveries as recoveries
from secateur import schedules as schedules
from secateur import tasks as tasks
from secateur._certify import bootstrap_interval as bootstrap_interval
from secateur._certify import certify as certify
from secateur._certify import explain as explain
from secateur._certify import verify_certificate as verify_certificate
from secateur._couple import couple as couple
from secateur._curves import merge as merge_curves
from secateur._cut import cut as cut
from secateur._evaluate import Evaluation as Evaluation
from secateur._evaluate import evaluate as evaluate
from secateur._export import export as export
from secateur._export import load as load
from secateur._export import save as save
from secateur._latency import measure as measure
from secateur._optimizer import carry_optimizer as carry_optimizer
from secateur._plan import plan as plan
from secateur._recover import recover as recover
from secateur._report import plot_comparison as plot_comparison
from secateur._report import plot_curves as plot_curves
from secateur._report import report as report
from secateur._scan import scan as scan
from secateur._score import calibrate as calibrate
from secateur._score import compare as compare
from secateur._score import merge_scores as merge_scores
from secateur._score import score as score
from secateur._surgery import package_version as _package_version
from secateur._trace import trace as trace
from secateur._validate import cross_validate as cross_validate
from secateur.errors import SecateurError as SecateurError
from secateur.pipeline import prune as prune
from secateur.schema import from_json as from_json
from secateur.schema import to_json as to_json
from secateur.schema.budget import Budget as Budget
from secateur.schema.certificate import Certificate as Certificate
from secateur.schema.comparison import Comparison as Comparison
from secateur.schema.costs import Costs as Costs
from secateur.schema.costs import Latency as Latency
from secateur.schema.curves import Curves as Curves
from secateur.schema.graph import Graph as Graph
from secateur.schema.groups import Groups as Groups
from secateur.schema.plan import Plan as Plan
from secateur.schema.precision import Precision as Precision
from secateur.schema.problem import Problem as Problem
from secateur.schema.receipt import Receipt as Receipt
from secateur.schema.result import Result as Result
from secateur.schema.scores import Scores as Scores
from secateur.schema.state import Candidate as Candidate
from secateur.schema.state import State as State
from secateur.schema.task import Data as Data
from secateur.schema.task import Task as Task
from secateur.schema.validation import Validation as Validation

__version__ = _package_version()

__all__ = [
    "Budget",
    "Candidate",
    "Certificate",
    "Comparison",
    "Costs",
    "Curves",
    "Data",
    "Evaluation",
    "Graph",
    "Groups",
    "Latency",
    "Plan",
    "Precision",
    "Problem",
    "Receipt",
    "Result",
    "Scores",
    "SecateurError",
    "State",
    "Task",
    "Validation",
    "__version__",
    "allocators",
    "bootstrap_interval",
    "calibrate",
    "carry_optimizer",
    "certifiers",
    "certify",
    "compare",
    "couple",
    "criteria",
    "cross_validate",
    "cut",
    "errors",
    "evaluate",
    "executors",
    "explain",
    "export",
    "exporters",
    "from_json",
    "load",
    "measure",
    "merge_curves",
    "merge_scores",
    "metrics",
    "ops",
    "plan",
    "plot_comparison",
    "plot_curves",
    "prune",
    "recover",
    "recoveries",
    "report",
    "save",
    "scan",
    "schedules",
    "score",
    "tasks",
    "to_json",
    "trace",
    "verify_certificate",
]

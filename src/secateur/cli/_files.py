"""Names of the files that commands leave in `--out` for each other."""

SCORES, CURVES, PLAN, REPORT = "scores.json", "curves.json", "plan.json", "report.json"
STORE, COMPARISON = "scan.jsonl", "comparison.json"

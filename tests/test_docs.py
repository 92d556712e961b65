"""Pages that are generated say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_of_operations_lists_the_rules_there_are() -> None:
    path = ROOT / "scripts" / "ops_table.py"
    spec = importlib.util.spec_from_file_location("ops_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "ops.md").read_text() == module.table(), "run python scripts/ops_table.py"

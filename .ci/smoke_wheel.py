"""Is the built wheel whole?  Usage: PYTHONPATH=DIR python -P smoke_wheel.py DIR, DIR = where it was unpacked."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import secateur


def main(unpacked: Path) -> None:
    """Fails with an AssertionError that says what the wheel lacks."""
    package = Path(secateur.__file__).resolve().parent
    assert package == unpacked / "secateur", f"imported {package}, not the wheel in {unpacked}"
    assert (package / "py.typed").is_file(), "py.typed is not in the wheel"
    assert secateur.__version__ == importlib.metadata.version("secateur")
    missing = [name for name in secateur.__all__ if name not in vars(secateur)]
    assert not missing, f"__all__ promises {missing}"
    source = Path(__file__).resolve().parents[1] / "src" / "secateur"
    shipped = {p.relative_to(package) for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    expected = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert shipped == expected, f"wheel and source differ in {sorted(map(str, shipped ^ expected))}"
    help_text = subprocess.run(
        [sys.executable, "-P", "-m", "secateur", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "prune" in help_text, help_text
    print(f"wheel {secateur.__version__}: {len(shipped)} files, imports, and `secateur --help` answers")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

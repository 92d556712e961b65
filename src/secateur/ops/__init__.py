"""Everything known about an operation, one file per family."""

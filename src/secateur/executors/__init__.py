"""Executors: where the measurements of a scan run.

Signature: (work, items) -> iterable of (index of the item, work(item)), in any order. The work function is the same
everywhere, and so are the results.
"""

from secateur.executors.processes import Processes as Processes
from secateur.executors.processes import processes as processes
from secateur.executors.ray import Ray as Ray
from secateur.executors.ray import ray as ray
from secateur.executors.serial import Serial as Serial
from secateur.executors.serial import serial as serial
from secateur.schema.table import table

__all__ = ["EXECUTORS", "Processes", "Ray", "Serial", "processes", "ray", "serial"]

EXECUTORS = table(
    ("serial", serial),
    ("processes", processes),
    ("ray", ray),
)

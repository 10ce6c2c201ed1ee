"""Cost model: operations, bytes and roofline time of a program's nodes, and descriptions of devices."""

from __future__ import annotations

from .concrete import concrete_model
from .device import CATALOGUE, Device, cpu, device
from .table import CostTable, NodeCost, program_cost

__all__ = ["CATALOGUE", "CostTable", "Device", "NodeCost", "concrete_model", "cpu", "device", "program_cost"]

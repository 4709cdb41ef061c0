"""Simulated Visium HD runs: real geometry and formats, made-up tissue, from kilobytes to full size."""

from stzarr.simulate.outs import simulate
from stzarr.store.source import SIMULATED

__all__ = ["SIMULATED", "simulate"]

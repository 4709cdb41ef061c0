"""Simulated Visium HD runs: real geometry and formats, made-up tissue, from kilobytes to full size."""

from stzarr.simulate.outs import SIMULATED, simulate

__all__ = ["SIMULATED", "simulate"]

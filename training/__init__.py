"""The trainer: a readable loop around a task, a model and a diffusion process; not part of the wheel."""

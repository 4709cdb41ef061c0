"""The stream: which patches, in which order, for which rank; how they are read; the torch dataset.

Order of use: ``prepare`` (stores -> grids, recipes) -> ``plan`` (``split``, ``lanes``) -> ``batches`` (``ahead``,
``fetch``) -> ``dataset``, the only module that imports torch. ``world`` says who owns which slots of a batch.
"""

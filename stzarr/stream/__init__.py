"""The stream: which patches, in which order, for which rank; how they are read; the torch dataset."""

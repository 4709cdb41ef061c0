"""Networks: they know tensors and nothing of stores, genes or runs."""

"""What a GPU did: which kernels ran, on which of its units and in which data type."""

"""Kohn-Sham Hamiltonians from structures: files, blocks, graph, the NextHAM network, bands."""

"""Ablations: cells of params, and each as a DVC experiment."""

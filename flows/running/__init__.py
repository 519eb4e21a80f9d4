"""Stages as tasks: what is asked for, the graph, the processes and their shares of the accelerators."""

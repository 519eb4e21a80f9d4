"""Stages as tasks: the request, the graph, the processes, and their shares of the machine."""

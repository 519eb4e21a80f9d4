"""The command line `rarlhf`: its arguments in `main`, the work of a command in its own file; nothing imports this."""

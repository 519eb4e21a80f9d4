"""The command line `rarlhf`: one file for each command; nothing else imports this."""

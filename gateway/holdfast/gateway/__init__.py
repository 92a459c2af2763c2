"""The doors: HTTP for clients, the command line for operators, and where everything is wired together."""

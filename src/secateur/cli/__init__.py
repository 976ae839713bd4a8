"""The command line, `secateur COMMAND`: `main` lists the commands, each has a file of its name."""

"""The command line: flags, one call, and what it prints; one file per command."""

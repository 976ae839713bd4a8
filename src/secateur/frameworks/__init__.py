"""What other frameworks need, one file each. Nothing here imports them before a function that needs them runs."""

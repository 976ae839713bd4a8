"""The command line: `secateur demo | inspect | prune | compress | evaluate | measure | recipe`."""

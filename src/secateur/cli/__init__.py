"""The command line: `secateur demo | inspect | prune | compress | evaluate | measure | export | recipe`."""

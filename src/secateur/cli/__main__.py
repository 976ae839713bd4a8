"""`python -m secateur.cli`: the command line of this very interpreter, which the demo calls for its second process."""

from secateur.cli.main import main

main()

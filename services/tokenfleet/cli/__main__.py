"""`python -m tokenfleet.cli`"""

from tokenfleet.cli import main

main()

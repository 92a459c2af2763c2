"""`python -m holdfast.gateway.cli`: the same as the console script `holdfast`."""

from holdfast.gateway.cli import main

main()

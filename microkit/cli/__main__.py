"""``python -m microkit.cli``"""

from microkit.cli import main

main()

"""`python -m common.cli`: the command, where its script is not on the path."""

from common.cli import main

if __name__ == "__main__":
    main()

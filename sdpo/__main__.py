"""`python -m sdpo`."""

from sdpo.cli import main

if __name__ == "__main__":
    main()

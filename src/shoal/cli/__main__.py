"""`python -m shoal.cli`, as `shoal` does."""

from shoal.cli import main

if __name__ == "__main__":
    main()

"""`python -m ailora_tools`."""

from .cli.group import main

if __name__ == "__main__":
    main()

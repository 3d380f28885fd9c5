"""`python -m services.launcher` is `sapwood`."""

from services.launcher.main import main

if __name__ == "__main__":
    main()

"""The command `sapwood`, which needs more than what users of a server install."""

import sys


def main() -> None:
    try:
        from services.launcher.main import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("sapwood", "services", "shared"):
            raise
        sys.exit(f"sapwood: there is no {error.name}: pip install 'sapwood[serve]'")
    run()

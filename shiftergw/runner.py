"""The entry of a worker process: `python -m shiftergw.runner`.

This name is in the process lists and scripts of sites, and a gateway that still runs after an
upgrade starts its workers by it. The program is `shiftergw.app.runner`.
"""

from shiftergw.app.runner import main

if __name__ == "__main__":
    main()

"""The entry of a worker process: `python -m shiftergw.runner`.

This name is in the process lists and scripts of sites, and a gateway that still runs after an
upgrade starts its workers by it. The program is `shiftergw.app.runner`.
"""

import gc

if __name__ == "__main__":
    # Imports free next to nothing, and the search for it takes a ninth of the start. `run_main`
    # enables the garbage collector again.
    gc.disable()

from shiftergw.app.runner import main

if __name__ == "__main__":
    main()

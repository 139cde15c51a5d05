"""All domains on a virtual clock.

`simulation.py` is one run, `chaos.py` what happens in it, `invariants.py` what must be true, `faults.py` what a run
must detect. `site.py` has the domains' real processes on a machine of which these are simulated: time (`clock.py`),
death (`life.py`), the bus, the disk, programs and what engines answer, models and devices.
"""

"""Where a run is started; `python -m launch.local` for several processes on this machine."""

"""What routers did: routes of a probe batch, the record of a run, the HTML report."""

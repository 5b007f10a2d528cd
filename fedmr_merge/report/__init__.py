"""Reports about runs: learning curves, plots of the partition, comparisons, and an HTML page."""

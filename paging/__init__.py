"""Parts larger than memory: ranges, pages, and the part that lays them over each other."""

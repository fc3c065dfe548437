"""The commands of `tanist`, one file for each group of them."""

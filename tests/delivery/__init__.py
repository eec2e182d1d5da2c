"""The promises of everything that puts files into image directories."""

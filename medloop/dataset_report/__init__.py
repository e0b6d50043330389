"""Report of a data set: counts, leakage, pictures, and the file or patient behind a hash."""

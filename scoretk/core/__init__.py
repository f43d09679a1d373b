"""What every other package uses: noise, arrays in memory, files on disk, the parts of a field."""

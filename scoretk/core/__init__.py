"""What every other package uses: noise, arrays in memory, files on disk, what a field is made of."""

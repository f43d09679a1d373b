"""What every floor uses: arrays in memory, files on the disk, what a field is made of."""

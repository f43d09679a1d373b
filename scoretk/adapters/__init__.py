"""What other libraries make, as fields: one file or folder a library, which is imported when it is used."""

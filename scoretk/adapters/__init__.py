"""What other libraries make, as fields: one file a library, which is imported when it is used."""

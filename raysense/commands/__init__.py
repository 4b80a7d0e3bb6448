"""What commands are made of: parsing and printing only. Importing this package imports nothing heavy."""

"""The stores of image records and of work: SQLite, MongoDB, and the rules that both share."""

"""The promises of shiftergw, as tests that mirror its tree."""

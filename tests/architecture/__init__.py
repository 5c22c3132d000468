"""The house rules as tests: sizes, names, bans, import contracts, dead modules. Every rule is shown able to fail."""

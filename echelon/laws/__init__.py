"""Laws that several actors share: whoever derives something derives it by the same function."""

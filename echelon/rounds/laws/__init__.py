"""Laws that the rounds of several actors share: whoever derives something derives it by the same function."""
